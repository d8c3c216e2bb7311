"""One shard of a source: what has to be encoded, and into which file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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

_DIGITS = 16
"""Of the hash in a part's name."""


@dataclass(frozen=True, eq=False)
class ShardJob:
    """Some images of a source, and the folder that their vectors go into.

    Attributes
    ----------
    number, of : int
        Which shard it is, counted from 1, of how many.
    source : str
        What was cut: a folder's path, a table's, or a hash of a list's paths.
    root : str
        Of a folder, as it was given: how the paths begin.
    paths : sequence of str, length n
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
    root: str
    paths: Sequence[str]
    labels: Sequence[Any] | None
    kind: str | None
    fingerprint: Mapping[str, Any] = field(repr=False)
    dim: int
    folder: Path
    on_error: str

    @cached_property
    def contents(self) -> str:
        """A hash of what decides the part: the encoder, and each image's path, size, time and label."""
        digest = hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode())
        for path, label in zip(self.paths, self.labels or [None] * len(self.paths), strict=True):
            name = path.removeprefix(self.root)
            digest.update(json.dumps([name, *_state(path), label]).encode() + b"\n")
        return digest.hexdigest()[:_DIGITS]

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
        batches = image_batches(
            encoder, list(self.paths), self.labels, on_error=self.on_error, skipped=skipped
        )
        name = f"{type(encoder).__name__}.encode"
        usable = usable_batches(batches, {}, encoder=name, on_error=self.on_error, skipped=skipped)
        return (batch for batch in usable if len(batch))


def _state(path: str) -> tuple[int, int]:
    """Return a file's size and time of change; what is no file is told when it is decoded."""
    try:
        found = os.stat(path)  # noqa: PTH116  ten million of them
    except (OSError, ValueError):
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _readable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
