"""A store that keeps everything of an image but its vector, which is encoded again where it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from clipretrieval.encoding.base import Encoder
from clipretrieval.encoding.streams import VECTORS, image_batches
from clipretrieval.errors import (
    InvalidInputError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.inputs import ready
from clipretrieval.retrieval.transform_plan import TransformPlan
from clipretrieval.stores.base import (
    BlobStore,
    ExclusiveStore,
    LocatedStore,
    RefreshableStore,
    ScannableStore,
    VectorStore,
    label_counter,
    view_manifest,
)
from clipretrieval.types import AnyArray, FloatArray, Label, Listing, Metric, Neighbors, Records

__all__ = ["VectorlessStore", "as_kept", "holding", "is_vectorless"]

KEEPS_VECTORS = "keeps_vectors"
"""False in the manifest of a store that has a placeholder in the place of each vector."""
COMPUTED = "computed"
"""How the vectors were computed, in that manifest: only the same way gives the same to the last digits."""
BATCH = 1024
"""Records that are read together."""


class VectorlessStore:
    """Keeps the ids, labels and files of images, and encodes an image again where its vector is asked for.

    What decides by class statistics needs no vectors to answer. They are asked for when an image is
    forgotten or relabeled, or when statistics have to be gathered anew.

    Parameters
    ----------
    records : VectorStore
        Where the records lie, each with a placeholder of one dimension.
    encoder : Encoder
    normalize : bool
        Whether vectors are scaled to length one.
    """

    def __init__(self, records: VectorStore, encoder: Encoder, normalize: bool) -> None:
        if not isinstance(records, ScannableStore) or not isinstance(records, BlobStore):
            raise UnsupportedOperationError(
                f"{type(records).__name__} cannot list what it holds, or cannot keep class statistics (it "
                "has no scan, or no write_blob), so vectors have to be kept: pass keep_vectors=True, or "
                "another store"
            )
        if records.dim not in (None, 1):
            raise InvalidInputError(
                f"the store holds vectors of dimension {records.dim}, and keep_vectors=False keeps none; "
                "pass a new store, or another place for it, or keep_vectors=True"
            )
        self.records, self._encoder, self._normalize = records, encoder, normalize
        self._held: dict[str, FloatArray] = {}

    @property
    def metric(self) -> Metric:
        """That of the records' store."""
        return Metric.parse(self.records.metric)

    @property
    def dim(self) -> int:
        """Of the vectors that are not kept."""
        return int(self._encoder.dim)

    def upsert(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add records without their vectors."""
        given = [{}] * len(ids) if metadata is None else metadata
        files = [each.get("source") for each in given]
        self.check(files)
        placed = [
            {**each, "source": str(Path(str(file)).absolute())}
            for each, file in zip(given, files, strict=True)
        ]
        self.records.upsert(ids, np.ones((len(ids), 1), dtype=np.float32), labels, placed)

    def check(self, files: Sequence[str | None]) -> None:
        """Refuse images whose vectors could not be had again.

        Raises
        ------
        InvalidInputError
            If some are not in files, or the store was filled by an encoder that computes otherwise.
        """
        missing = [file for file in files if file is None or not Path(file).is_file()]
        if missing:
            example = "" if missing[0] is None else f", such as {missing[0]!r},"
            raise InvalidInputError(
                f"{len(missing)} of {len(files)} images{example} are not files that can be opened again, and "
                "keep_vectors=False encodes an image again from its file when it is forgotten or relabeled; "
                "pass paths, or keep_vectors=True"
            )
        self._check_computed()

    def renew_files(self, files: Mapping[str, str]) -> None:
        """Note where images are now, of which the files that they were stored from are gone."""
        ids = list(files)
        for start in range(0, len(ids), BATCH):
            records = self.records.get(ids[start : start + BATCH])
            gone = [not Path(str(each.get("source"))).is_file() for each in records.metadata]
            moved = records.ids[gone].tolist()
            if moved:
                metadata = [each for each, lost in zip(records.metadata, gone, strict=True) if lost]
                placed = [{**each, "source": files[name]} for each, name in zip(metadata, moved, strict=True)]
                none = np.empty((0, self.dim), dtype=np.float32)
                self.upsert(moved, none, records.labels[gone].tolist(), placed)

    def get(self, ids: Sequence[str]) -> Records:
        """Return the records of `ids`; the images are encoded when their vectors are read."""
        return _UnreadRecords(self.records.get(ids), self)

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        """Refuse: there is nothing to search.

        Raises
        ------
        UnsupportedOperationError
        """
        raise UnsupportedOperationError(
            "this exit keeps no vectors (keep_vectors=False), so it has no neighbors to show; ask the last "
            "exit, or fit with keep_vectors=True"
        )

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through the ids and labels of all records, or of those with one label."""
        return cast("ScannableStore", self.records).scan(label)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove records."""
        return self.records.delete(ids)

    def count(self, label: Label | None = None) -> int:
        """Return the number of records, or of those with one label, by a scan where their store cannot."""
        if label is None:
            return self.records.count()
        counter = label_counter(self.records)
        return sum(map(len, self.scan(label))) if counter is None else counter(label)

    def read_manifest(self) -> dict[str, Any]:
        """Return a copy of the manifest."""
        return self.records.read_manifest()

    def _view_manifest(self) -> Mapping[str, Any]:
        return view_manifest(self.records)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Keep a manifest that says that there are no vectors."""
        self.records.write_manifest({COMPUTED: self._computed, **manifest, KEEPS_VECTORS: False})

    def read_blob(self, name: str) -> bytes | None:
        """Return a blob."""
        return cast("BlobStore", self.records).read_blob(name)

    def write_blob(self, name: str, content: bytes | None) -> None:
        """Keep a blob."""
        cast("BlobStore", self.records).write_blob(name, content)

    def location(self) -> dict[str, Any] | None:
        """Return where the records lie."""
        return self.records.location() if isinstance(self.records, LocatedStore) else None

    def refresh(self) -> bool:
        """Take up what another process has written."""
        return isinstance(self.records, RefreshableStore) and self.records.refresh()

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other writers out of a block, where the records' store can."""
        return self.records.exclusive() if isinstance(self.records, ExclusiveStore) else nullcontext()

    def flush(self) -> None:
        """Make durable what was written."""
        self.records.flush()

    def close(self) -> None:
        """Free what the records' store holds."""
        self.records.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.records!r})"

    @contextmanager
    def holding(self, ids: Sequence[str], files: Mapping[str, str] | None = None) -> Iterator[None]:
        """Encode images before a block that changes them, so that it cannot fail amid that.

        Parameters
        ----------
        ids : sequence of str
        files : mapping of id to path, optional
            Where the same images are, in the place of the files that they were stored from.

        Raises
        ------
        StoreUnavailableError
            If a file is gone, or holds another image.
        """
        before = self._held
        missing = [name for name in ids if name not in before]
        found = dict(before)
        for start in range(0, len(missing), BATCH):
            records = self.records.get(missing[start : start + BATCH])
            ids = records.ids.tolist()
            if files is not None:
                metadata = [{"source": files[name]} for name in ids]
                records = Records(records.ids, records.vectors, records.labels, metadata)
            found.update(zip(ids, self.encode(records), strict=True))
        self._held = found
        try:
            yield
        finally:
            self._held = before

    def encode(self, records: Records) -> FloatArray:
        """Return the vectors of records, from the images' files.

        Returns
        -------
        ndarray of float32, shape (n, dim)
        """
        held, ids = self._held, records.ids.tolist()
        missing = [row for row, name in enumerate(ids) if name not in held]
        made = dict(zip([ids[row] for row in missing], self._encode_files(records, missing), strict=True))
        rows = [held[name] if name in held else made[name] for name in ids]
        return np.stack(rows) if rows else np.empty((0, self.dim), dtype=np.float32)

    def _encode_files(self, records: Records, rows: Sequence[int]) -> FloatArray:
        if not rows:
            return np.empty((0, self.dim), dtype=np.float32)
        self._check_computed()
        paths = [str(records.metadata[row].get("source")) for row in rows]
        gone = [path for path in paths if not Path(path).is_file()]
        if gone:
            raise self._lost(gone, "are gone" if len(gone) > 1 else "is gone")
        skipped = list[SkippedImage]()
        batches = ready(
            image_batches(self._encoder, paths, on_error="skip", skipped=skipped),
            self._encoder,
            self.metric,
            self._normalize,
            "skip",
            skipped,
            stored=False,
        )
        encoded = list(batches)
        if skipped:
            what = f"cannot be read any more ({skipped[0].reason})"
            raise self._lost([paths[image.index] for image in skipped], what)
        found = [name for batch in encoded for name in batch.ids]
        names = records.ids[list(rows)].tolist()
        changed = [path for path, name, known in zip(paths, found, names, strict=True) if name != known]
        if changed:
            raise self._lost(changed, "hold other images" if len(changed) > 1 else "holds another image")
        return np.concatenate([batch.vectors[VECTORS] for batch in encoded])

    @property
    def _computed(self) -> dict[str, str]:
        plan = getattr(self._encoder, "plan", None)
        return {} if plan is None else {"precision": plan.precision, "device": plan.device.partition(":")[0]}

    def _check_computed(self) -> None:
        """Refuse an encoder by which what was taken up could not be taken out again exactly."""
        then, now = view_manifest(self.records).get(COMPUTED), self._computed
        if isinstance(then, Mapping) and dict(then) != now and self.records.count():
            before, here = (
                ", ".join(map(str, each.values())) or "an encoder of your own" for each in (then, now)
            )
            raise InvalidInputError(
                f"the store was filled with keep_vectors=False by an encoder that computes in {before}, and "
                f"this one computes in {here}, so changes would not be exact; pass an encoder of the same "
                "precision and device"
            )

    @staticmethod
    def _lost(paths: Sequence[str], what: str) -> StoreUnavailableError:
        listed = ", ".join(map(repr, paths[:3])) + (", …" if len(paths) > 3 else "")
        return StoreUnavailableError(
            f"{listed} {what}: the vector of an image that was fitted with keep_vectors=False is encoded "
            "again from its file. Put it back, add the images once more from where they are now "
            "(partial_fit), or fit again without it"
        )


class _UnreadRecords(Records):
    """Records whose images are encoded when their vectors are read."""

    def __init__(self, records: Records, store: VectorlessStore) -> None:
        self.__dict__.update(
            ids=records.ids, labels=records.labels, metadata=records.metadata, _records=records, _store=store
        )

    @cached_property
    def vectors(self) -> FloatArray:
        """The vectors, shape (n, dim)."""
        found: AnyArray = self.__dict__["_store"].encode(self.__dict__["_records"])
        return found

    def __repr__(self) -> str:
        return f"Records(n={len(self.ids)})"


def is_vectorless(store: VectorStore) -> bool:
    """Tell whether the records of a store have placeholders in the place of vectors."""
    return isinstance(store, VectorlessStore) or view_manifest(store).get(KEEPS_VECTORS) is False


def as_kept(
    store: VectorStore, keeps_vectors: bool, encoder: Encoder | None, normalize: bool, plan: TransformPlan
) -> VectorStore:
    """Return a store as one that keeps no vectors, unless it is to keep them.

    Raises
    ------
    InvalidInputError
        If it holds none and is to keep them, or there is nothing to encode images again with.
    """
    if keeps_vectors:
        if is_vectorless(store):
            raise InvalidInputError(
                "a cascade with keep_vectors=False filled the store, so it holds no vectors; pass a new "
                "store, or another place for it, or keep_vectors=False"
            )
        return store
    if encoder is None or plan.rule is not None:
        raise InvalidInputError(
            "a store that keeps no vectors has none to transform; pass transform=None and a head that "
            "wants none, or fit into another store"
        )
    # Anew, as encoder and arguments may be others than they were.
    records = store.records if isinstance(store, VectorlessStore) else store
    return VectorlessStore(records, encoder, normalize)


def holding(
    store: VectorStore, ids: Sequence[str], files: Mapping[str, str] | None = None
) -> AbstractContextManager[None]:
    """Have the vectors of some records at hand in a block that changes them, whatever store has them."""
    return store.holding(ids, files) if isinstance(store, VectorlessStore) else nullcontext()
