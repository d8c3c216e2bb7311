"""One shard of a source: what has to be encoded, and into which file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipretrieval.encoding.base import Encoder
from clipretrieval.encoding.streams import VECTORS, image_batches
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.unusable import usable_batches
from clipretrieval.vectors.part_manifest import SOURCE, PartManifest
from clipretrieval.vectors.part_report import PartReport
from clipretrieval.vectors.part_writer import write_part

__all__ = ["ShardJob"]


@dataclass(frozen=True, eq=False)
class ShardJob:
    """Some images of a source, and the folder that their vectors go into.

    Attributes
    ----------
    number, of : int
        Which shard it is, counted from 1, of how many.
    source : str
        What was cut: a folder's path or URL, a table's, or a hash of a list's paths.
    contents : str
        A hash of what decides the part: the encoder, the images and their labels.
    images : image-like
        Paths or URLs; rows of a dataset, which other processes can open; or tars.
    count : int
        How many they are: n images, or tars.
    labels : sequence, length n, or None
    kind : {"bool", "int", "float", "str"} or None
        The labels' type.
    fingerprint : mapping of JSON values
        The encoder's.
    dim : int
        Of its vectors.
    folder : Path
    on_error : {"raise", "skip"}
    """

    number: int
    of: int
    source: str
    contents: str
    images: Any = field(repr=False)  # URLs may hold secrets
    count: int
    labels: Sequence[Any] | None = field(repr=False)
    kind: str | None
    fingerprint: Mapping[str, Any] = field(repr=False)
    dim: int
    folder: Path
    on_error: str

    @property
    def prefix(self) -> str:
        """How the names of all parts begin that are of this shard, whatever its images were."""
        return f"part-{self.number:05}-of-{self.of:05}-"

    @property
    def path(self) -> Path:
        """The file that is there once the shard is done."""
        return self.folder / f"{self.prefix}{self.contents}.parquet"

    def is_of_same_shard(self, shard: Mapping[str, Any]) -> bool:
        """Tell whether a part's manifest says that it is of this shard, perhaps of other images."""
        own = {"source": self.source, "number": self.number, "of": self.of}
        return all(shard.get(key) == value for key, value in own.items())

    def run(self, encoder: Encoder) -> PartReport:
        """Encode the images, and have the file take its name when all are there.

        Raises
        ------
        ImageDecodeError, InvalidInputError
            If an image cannot be decoded or used, and `on_error` is ``"raise"``.
        StoreUnavailableError
            If the file cannot be written.
        """
        shard = {"source": self.source, "number": self.number, "of": self.of, "contents": self.contents}
        manifest = PartManifest(self.fingerprint, self.dim, shard=shard)
        skipped: list[SkippedImage] = []
        written = 0
        with write_part(self.path, manifest, self.kind) as writer:
            for batch in self._batches(encoder, skipped):
                sources = [{SOURCE: _readable(each)} if each else {} for each in batch.sources]
                writer.write(batch.ids, batch.vectors[VECTORS], batch.labels, sources)
                written += len(batch)
            writer.note_skipped(skipped)
        return PartReport(self.number, self.path, written, tuple(skipped))

    def _batches(self, encoder: Encoder, skipped: list[SkippedImage]) -> Iterator[Any]:
        batches = image_batches(encoder, self.images, self.labels, on_error=self.on_error, skipped=skipped)
        name = f"{type(encoder).__name__}.encode"
        usable = usable_batches(batches, {}, encoder=name, on_error=self.on_error, skipped=skipped)
        return (batch for batch in usable if len(batch))


def _readable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
