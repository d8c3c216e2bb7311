"""Stores that are right, and stores that are wrong in one way each, for the conformance suite."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from clipretrieval.stores import Listing, MemoryStore, Neighbors, Records


class Right:
    """A MemoryStore that can be opened again by its folder's name: nothing is wrong with it."""

    kept: ClassVar[dict[Path, MemoryStore]] = {}

    def __init__(self, metric: str, folder: Path) -> None:
        self.folder = folder
        self.inner = copy.deepcopy(self.kept[folder]) if folder in self.kept else MemoryStore(metric)
        self.closed = False

    @property
    def metric(self) -> Any:
        return self.inner.metric

    @property
    def dim(self) -> int | None:
        return self.inner.dim

    def upsert(self, ids: Any, vectors: Any, labels: Any, metadata: Any = None) -> None:
        self.inner.upsert(ids, vectors, labels, metadata)

    def search(self, vectors: Any, k: int) -> Neighbors:
        return self.inner.search(vectors, k)

    def get(self, ids: Any) -> Records:
        return self.inner.get(ids)

    def delete(self, ids: Any) -> int:
        return self.inner.delete(ids)

    def scan(self, label: Any = None) -> Iterator[Listing]:
        return self.inner.scan(label)

    def count(self, label: Any = None) -> int:
        return self.inner.count(label)

    def read_manifest(self) -> dict[str, Any]:
        return self.inner.read_manifest()

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        self.inner.write_manifest(manifest)

    def read_blob(self, name: str) -> bytes | None:
        return self.inner.read_blob(name)

    def write_blob(self, name: str, content: bytes | None) -> None:
        self.inner.write_blob(name, content)

    def flush(self) -> None:
        self.kept[self.folder] = copy.deepcopy(self.inner)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.kept[self.folder] = copy.deepcopy(self.inner)
            self.inner.close()


class ShownOnFlush(Right):
    """Shows what was written only after a flush, as it may."""

    def __init__(self, metric: str, folder: Path) -> None:
        super().__init__(metric, folder)
        self.flush()

    def flush(self) -> None:
        super().flush()
        self.shown = copy.deepcopy(self.inner)

    def search(self, vectors: Any, k: int) -> Neighbors:
        return self.shown.search(vectors, k)

    def get(self, ids: Any) -> Records:
        return self.shown.get(ids)

    def scan(self, label: Any = None) -> Iterator[Listing]:
        return self.shown.scan(label)

    def count(self, label: Any = None) -> int:
        return self.shown.count(label)


class CountsOnce(Right):
    """Counts the records of a label as they were when it was first asked."""

    def __init__(self, metric: str, folder: Path) -> None:
        super().__init__(metric, folder)
        self.counts: dict[Any, int] = {}

    def count(self, label: Any = None) -> int:
        return self.inner.count() if label is None else self.counts.setdefault(label, self.inner.count(label))


class CountsAll(Right):
    """Does not look at the label that it is given."""

    def count(self, label: Any = None) -> int:
        self.inner.count(label)
        return self.inner.count()


class MissesSome(Right):
    """Misses one of the neighbours of every other query."""

    def search(self, vectors: Any, k: int) -> Neighbors:
        near = super().search(vectors, k)
        if k < 5 or self.count() <= k:
            return near
        wide = super().search(vectors, k + 1)
        columns = np.delete(np.arange(k + 1), 3)
        odd = np.arange(len(near))[:, None] % 2 == 1
        return Neighbors(
            np.where(odd, wide.ids[:, columns], near.ids),
            np.where(odd, wide.distances[:, columns], near.distances),
            np.where(odd, wide.labels[:, columns], near.labels),
        )


class Similarity(Right):
    """Returns the inner product and the cosine themselves, greatest first."""

    def search(self, vectors: Any, k: int) -> Neighbors:
        near = super().search(vectors, k)
        if self.metric == "l2":
            return near
        found = -near.distances if self.metric == "ip" else 1 - near.distances
        return replace(near, distances=np.where(near.valid, found, near.distances))


class RootTaken(Right):
    """Returns the Euclidean distance, not its square."""

    def search(self, vectors: Any, k: int) -> Neighbors:
        near = super().search(vectors, k)
        return replace(near, distances=np.sqrt(near.distances)) if self.metric == "l2" else near


class SquaredTwice(Right):
    """Squares a distance that was squared already."""

    def search(self, vectors: Any, k: int) -> Neighbors:
        near = super().search(vectors, k)
        return replace(near, distances=np.square(near.distances)) if self.metric == "l2" else near


class Reversed(Right):
    """Returns the farthest of the neighbours first."""

    def search(self, vectors: Any, k: int) -> Neighbors:
        near = super().search(vectors, k)
        count = min(k, self.count())
        columns = np.r_[np.arange(count)[::-1], np.arange(count, k)]
        return Neighbors(near.ids[:, columns], near.distances[:, columns], near.labels[:, columns])


class LabelsShifted(Right):
    """Gives each neighbour the label of the one before it."""

    def search(self, vectors: Any, k: int) -> Neighbors:
        near = super().search(vectors, k)
        count = min(k, self.count())
        labels = near.labels.copy()
        labels[:, :count] = np.roll(labels[:, :count], 1, axis=1)
        return replace(near, labels=labels)


class UpsertAdds(Right):
    """Keeps the old record beside the new one where an id is stored again."""

    def upsert(self, ids: Any, vectors: Any, labels: Any, metadata: Any = None) -> None:
        before = copy.deepcopy(self.inner)
        self.inner.upsert(ids, vectors, labels, metadata)
        old = before.get(ids)
        if len(old):
            again = [f"{name}\x01" for name in old.ids]
            self.inner.upsert(again, old.vectors, old.labels.tolist(), old.metadata)

    def search(self, vectors: Any, k: int) -> Neighbors:
        near = super().search(vectors, k)
        ids = near.ids.copy()
        ids.flat = [name.rstrip("\x01") for name in ids.flat]
        return replace(near, ids=ids)


class DeleteLies(Right):
    """Counts what it was asked to delete, not what was there."""

    def delete(self, ids: Any) -> int:
        super().delete(ids)
        return len(ids)


class PaddedWithZeros(Right):
    """Pads with a distance of 0."""

    def search(self, vectors: Any, k: int) -> Neighbors:
        near = super().search(vectors, k)
        return replace(near, distances=np.where(near.valid, near.distances, np.float32(0)))


class IdsLost(Right):
    """Keeps vectors without their ids when it is closed."""

    def close(self) -> None:
        if self.closed or not self.count():
            return super().close()
        every = self.inner.search(np.ones((1, self.dim or 1)), self.count()).ids[0].tolist()
        records = self.inner.get(every)
        self.inner.delete(every)
        numbers = [str(place) for place in range(len(records))]
        self.inner.upsert(numbers, records.vectors, records.labels.tolist(), records.metadata)
        return super().close()


class CosineNotNormalised(Right):
    """Takes 1 − inner product for the cosine distance."""

    def search(self, vectors: Any, k: int) -> Neighbors:
        near = super().search(vectors, k)
        if self.metric != "cosine" or not self.count():
            return near
        rows = np.stack([self.inner.get([name]).vectors[0] for name in near.ids.flat if name])
        rows = rows.reshape(len(near), -1, rows.shape[1])
        distances, count = near.distances.copy(), rows.shape[1]
        distances[:, :count] = 1 - np.einsum("qd,qkd->qk", np.asarray(vectors, np.float32), rows)
        order = np.argsort(distances, axis=1, kind="stable")
        columns = (np.take_along_axis(each, order, axis=1) for each in (near.ids, distances, near.labels))
        return Neighbors(*columns)


class FirstTenThousand(Right):
    """Stores no more than 10,000 records of a call."""

    def upsert(self, ids: Any, vectors: Any, labels: Any, metadata: Any = None) -> None:
        super().upsert(ids, vectors, labels, metadata)
        if len(ids) > 10_000:
            super().delete(ids[10_000:])


class MetadataMerged(Right):
    """Adds the new metadata of a replaced record to the old."""

    def upsert(self, ids: Any, vectors: Any, labels: Any, metadata: Any = None) -> None:
        before = copy.deepcopy(self.inner)
        self.inner.upsert(ids, vectors, labels, metadata)
        if metadata is not None:
            old = dict(zip(before.get(ids).ids, before.get(ids).metadata, strict=True))
            merged = [{**old.get(name, {}), **new} for name, new in zip(ids, metadata, strict=True)]
            self.inner.upsert(ids, vectors, labels, merged)


class StoredByHalves(Right):
    """Stores the records of a call one by one until it comes to a bad one."""

    def upsert(self, ids: Any, vectors: Any, labels: Any, metadata: Any = None) -> None:
        if metadata is None and type(ids) is list and len(ids) == len(vectors) == len(labels) < 100:
            for name, row, label in zip(ids, vectors, labels, strict=True):
                self.inner.upsert([name], row[None], [label])
            if len(set(ids)) == len(ids):
                return
        self.inner.upsert(ids, vectors, labels, metadata)


class PagesOverlap(Right):
    """Lists the last record of a page again on the next."""

    def scan(self, label: Any = None) -> Iterator[Listing]:
        for listing in super().scan(label):
            for start in range(0, len(listing), 3):
                piece = slice(max(start - 1, 0), start + 3)
                yield Listing(listing.ids[piece], listing.labels[piece])


class LabelsAsText(Right):
    """Takes a label for its text: 1 for "1"."""

    def scan(self, label: Any = None) -> Iterator[Listing]:
        for listing in super().scan():
            same = np.array([label is None or str(each) == str(label) for each in listing.labels])
            if same.any():
                yield Listing(listing.ids[same], listing.labels[same])


class OnePage(Right):
    """Lists a page and takes it for all."""

    def scan(self, label: Any = None) -> Iterator[Listing]:
        return itertools.islice(super().scan(label), 1)


class FlushDoesNothing(Right):
    """Keeps what was written only when it is closed."""

    def flush(self) -> None:
        pass


class LabelsFirst(Right):
    """Replaces labels before vectors, and lets searches in between."""

    def upsert(self, ids: Any, vectors: Any, labels: Any, metadata: Any = None) -> None:
        if 1 < len(ids) < 100 and isinstance(labels, list) and len(labels) == len(ids):
            old = self.inner.get(ids)
            if len(old) == len(ids) and type(labels[0]) is type(old.labels.tolist()[0]):
                self.inner.upsert(ids, old.vectors, labels)
                time.sleep(0.01)
        self.inner.upsert(ids, vectors, labels, metadata)


class CannotScan(Right):
    """Has no scan, as it may."""

    scan = None  # type: ignore[assignment]


class EmptyBlobIsNone(Right):
    """Takes a blob of no bytes for none."""

    def read_blob(self, name: str) -> bytes | None:
        return super().read_blob(name) or None


class BlobOverwritten(Right):
    """Writes a blob over the old one, of which the end stays."""

    def write_blob(self, name: str, content: bytes | None) -> None:
        old = (self.inner.read_blob(name) or b"") if isinstance(content, bytes) else b""
        super().write_blob(name, content if content is None else content + old[len(content) :])


class BlobsGoWithRecords(Right):
    """Forgets a blob with any record."""

    def delete(self, ids: Any) -> int:
        removed = super().delete(ids)
        if removed:
            self.inner.write_blob("a", None)
        return removed


class BlobsLost(Right):
    """Keeps no blobs when it is closed."""

    def close(self) -> None:
        for name in () if self.closed else ("a", "b"):
            self.inner.write_blob(name, None)
        super().close()


class CountsNoLabels(Right):
    """Counts all records alone, as it may."""

    def count(self) -> int:  # type: ignore[override]
        return self.inner.count()


class KeepsNoBlobs(Right):
    """Keeps no blobs, as it may."""

    write_blob = None  # type: ignore[assignment]
