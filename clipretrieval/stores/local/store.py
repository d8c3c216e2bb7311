"""What the stores that keep their vectors in this process have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import numpy as np

from clipretrieval._util.repr import safe_repr
from clipretrieval.errors import InvalidInputError, StoreError
from clipretrieval.stores.checks import (
    check_batch,
    check_blob,
    check_blob_name,
    check_dim,
    check_k,
    check_label,
    check_label_kind,
    check_lookup_ids,
    check_queries,
)
from clipretrieval.stores.exact import DoubleArray, IndexArray, Shortlist, nearest_rows
from clipretrieval.stores.local.blob import Blob
from clipretrieval.stores.local.folder import Kind, Snapshot
from clipretrieval.stores.local.folder_manifest import LARGEST_BLOBS, LARGEST_MANIFEST, FolderManifest
from clipretrieval.stores.local.folder_write import write_generation, write_rows
from clipretrieval.stores.local.held import HeldRecords, JoinedRows
from clipretrieval.stores.local.locks import Guard, Recovery
from clipretrieval.stores.local.manifest_view import ManifestView
from clipretrieval.stores.local.rows import VectorRows
from clipretrieval.stores.local.segments import Segments
from clipretrieval.stores.local.table import Moves, RecordTable
from clipretrieval.types import FloatArray, Label, Listing, Metric, Neighbors, Records

__all__ = ["LocalStore"]

Self = TypeVar("Self", bound="LocalStore")


class LocalStore:
    """The five verbs over what is `HeldRecords`; threads may search while one writes.

    What is written lies in memory, in a `RecordTable` and `VectorRows`; a subclass with a folder has segments
    beneath them, of which records are only removed. Subclasses say where the rows lie (`_new_rows`) and may
    act before each write and at the close.
    """

    _kind: ClassVar[Kind]
    """Whose folders are read and written; also those of a subclass."""

    def __init__(self, metric: Metric | str) -> None:
        self._guard = Guard(self._computing)
        self._closed = False
        self._metric = Metric.parse(metric)
        self._clear()

    def _clear(self) -> None:
        self._dim: int | None = None
        # Replaced as a whole: whoever has taken it goes on with what was held then.
        self._held = HeldRecords(Segments(), RecordTable(), None)
        self._manifest = ManifestView()
        self._blobs: Mapping[str, Blob] = {}
        self._changed = False

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Copied while it is held: what pickle does with it later, writers cannot disturb.
        with self._guard.hold():
            state = {name: value for name, value in vars(self).items() if name != "_guard"}
            return copy.deepcopy(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._guard = Guard(self._computing)

    def __copy__(self: Self) -> Self:
        # With a copy of the contents, even so: two locks could not guard one.
        new = type(self).__new__(type(self))
        new.__setstate__(self.__getstate__())
        return new

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    @safe_repr
    def __repr__(self) -> str:
        state = "closed" if self._closed else f"count={len(self._held)}"
        return f"{type(self).__name__}(metric={str(self._metric)!r}, dim={self._dim}, {state})"

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._metric

    @property
    def dim(self) -> int | None:
        """The vectors' dimension; None until the first upsert."""
        return self._dim

    def upsert(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add vectors, replacing wholly those whose id is already there; see `VectorStore.upsert`."""
        batch = check_batch(ids, vectors, labels, metadata, self._metric)
        with self._guard.write():
            self._begin_write()
            dim = batch.vectors.shape[1]
            check_dim(dim, self._dim)
            held = self._held
            check_label_kind(batch.labels, held.some_label)
            rows = self._new_rows(dim) if held.rows is None else held.rows
            segments = _without(held.segments, batch.ids)
            places = held.table.places(batch.ids)
            vectors = self._stored(batch.vectors, batch.norms)
            self._guard.recovery = self._undo_write(rows, batch.ids, places)
            held.table.reserve(batch, places)
            rows.write(vectors, places)
            held.table.write(batch, places)
            self._held = HeldRecords(segments, held.table, rows, held.index)
            self._dim, self._changed, self._guard.recovery = dim, True, None
            self._wrote()

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        """Return the `k` nearest stored vectors of each query; see `VectorStore.search`.

        Distances are computed in float64 and rounded to float32; those beyond its range become its largest
        value.
        """
        queries, norms = check_queries(vectors, self._metric)
        reach = check_k(k)
        with self._guard.read():
            self._require_open()
            check_dim(queries.shape[1], self._dim)
            held = self._held
            if len(held):
                queries = self._stored(queries, norms)
                view = held.view()
                shortlist, candidates = self._aids(held, view, queries, reach)
                # Ids are looked at where distances tie.
                positions, distances = nearest_rows(
                    queries, view, held, reach, self._metric, shortlist, candidates
                )
            else:
                positions = np.full((len(queries), reach), -1, dtype=np.int64)
                distances = np.full((len(queries), reach), np.inf, dtype=np.float32)
            ids, labels = held.take(held.number(positions))
        return Neighbors(ids, distances, labels)

    def get(self, ids: Sequence[str]) -> Records:
        """Return the records of `ids`, in that order; ids that are not stored are left out."""
        names = check_lookup_ids(ids)
        with self._guard.read():
            self._require_open()
            held = self._held
            found = held.find(names)
            found = found[found >= 0]
            vectors = held.vectors(found)
            if not len(found):
                vectors = np.empty((0, self._dim or 0), dtype=np.float32)
            vectors = self._original(vectors, held.norms(found))
            names_found, labels = held.take(found)
            return Records(names_found, vectors, labels, held.metadata(found))

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the records of `ids` and return how many of them were there."""
        names = check_lookup_ids(ids)
        with self._guard.write():
            self._begin_write()
            held = self._held
            segments, moves = _without(held.segments, names), held.table.plan_removal(names)
            count = len(held.segments) - len(segments) + moves.removed
            if count:
                self._guard.recovery = self._finish_removal(segments, moves)
                self._changed = True
                if moves.removed and held.rows is not None:
                    held.rows.remove(moves)
                    held.table.remove(moves)
                self._held = HeldRecords(segments, held.table, held.rows, held.index)
                self._guard.recovery = None
                self._wrote()
            return count

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through all ids and labels, or those of one label, as they are when this is called."""
        wanted = check_label(label)
        with self._guard.read():
            self._require_open()
            return self._held.listings(wanted)

    def count(self, label: Label | None = None) -> int:
        """Return the number of stored vectors, or of those with one label."""
        wanted = check_label(label)
        self._require_open()
        if wanted is None:
            return len(self._held)
        with self._guard.read():
            self._require_open()
            return self._held.count(wanted)

    def read_manifest(self) -> dict[str, Any]:
        """Return a copy of what `write_manifest` last kept; an empty dict if nothing was."""
        self._require_open()
        return self._manifest.copy()

    def _view_manifest(self) -> Mapping[str, Any]:
        """Return what `read_manifest` does, parsed once for all readers, who must not change it."""
        self._require_open()
        return self._manifest.content

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Keep a JSON object of at most 32 MiB beside the vectors, replacing the one before."""
        view = ManifestView.written(manifest, self._manifest)
        if view.size > LARGEST_MANIFEST:
            raise InvalidInputError(
                f"the manifest takes {view.size} characters as JSON; {LARGEST_MANIFEST} is the most. Keep "
                "what is large beside the store"
            )
        with self._guard.write():
            self._begin_write()
            if not view.says_what(self._manifest):
                self._changed, self._manifest = True, view

    def read_blob(self, name: str) -> bytes | None:
        """Return the blob that `write_blob` last kept under this name; None if there is none."""
        name = check_blob_name(name)
        self._require_open()
        found = self._blobs.get(name)
        return None if found is None else found.read()

    def write_blob(self, name: str, content: bytes | None) -> None:
        """Keep bytes beside the vectors, or with None no more; see `BlobStore.write_blob`.

        All blobs of a store take at most 1 GiB together: they are held in memory.
        """
        name, content = check_blob(name, content)
        with self._guard.write():
            self._begin_write()
            held = self._blobs.get(name)
            if held is None and content is None:
                return
            if held is not None and held.damage is None and content == held.content:
                return
            blobs = {each: blob for each, blob in self._blobs.items() if each != name}
            if content is not None:
                blobs[name] = Blob(content)
            size = sum(blob.size for blob in blobs.values())
            if size > LARGEST_BLOBS:
                raise InvalidInputError(
                    f"with {name!r} the blobs would take {size:,} bytes; {LARGEST_BLOBS:,} are the most. "
                    "Remove one, or keep what is large beside the store"
                )
            self._changed, self._blobs = True, blobs

    def flush(self) -> None:
        """Return when everything written so far is durable and visible to searches."""
        self._require_open()

    def close(self) -> None:
        """Flush and free what the store holds; calling it again does nothing."""
        with self._guard.write():
            if not self._closed:
                self._finish()
                dim = self._dim
                self._clear()
                self._dim, self._closed = dim, True

    @staticmethod
    def _computing() -> AbstractContextManager[None]:
        """Return what surrounds every use of the contents."""
        return nullcontext()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"this {type(self).__name__} is closed; open it anew")

    def _begin_write(self) -> None:
        """Refuse what may not be written; called with the contents held alone, before anything changes."""
        self._require_open()

    def _wrote(self) -> None:
        """Do what is due after records came or went; called with the contents held alone."""

    def _finish(self) -> None:
        """Do what must be done before the contents are let go."""

    def _new_rows(self, dim: int) -> VectorRows:
        """Return empty rows for vectors of dimension `dim`."""
        raise NotImplementedError

    def _rows_alone(self, dim: int) -> VectorRows:
        """Return empty rows that no segments lie beneath."""
        return self._new_rows(dim)

    def _stored(self, vectors: FloatArray, norms: DoubleArray) -> FloatArray:
        """Return vectors as they lie in the rows."""
        return vectors

    def _original(self, rows: FloatArray, norms: DoubleArray) -> FloatArray:
        """Return vectors as they were given, undoing `_stored`."""
        return rows

    def _aids(
        self, held: HeldRecords, view: FloatArray | JoinedRows, queries: FloatArray, k: int
    ) -> tuple[Shortlist | None, IndexArray | None]:
        """Return a fast source of candidates and candidates, if there are any; see `nearest_rows`."""
        if held.rows is None or len(held.segments):
            return None, None
        return held.rows.shortlist(held.longest), held.rows.candidates(queries, k)

    def _adopt(self, snapshot: Snapshot) -> None:
        """Take over what a folder holds."""
        manifest = snapshot.manifest
        self._metric, self._dim = manifest.metric, manifest.dim
        self._manifest = ManifestView(manifest.user, snapshot.parts)
        self._changed, self._blobs = False, snapshot.blobs
        rows = None if snapshot.vectors is None else self._new_rows(snapshot.vectors.shape[1])
        if rows is not None and snapshot.vectors is not None:
            rows.write(snapshot.vectors, np.arange(len(snapshot.vectors)))
        self._held = HeldRecords(snapshot.segments, snapshot.table, rows)

    def _take_into_memory(self) -> None:
        """Copy what lies in segments, so that the folder can be left."""
        held = self._held
        if not held.segments.total:
            return
        held.segments.verify()
        view = held.view()
        numbers = held.number(np.arange(len(view)))
        table = RecordTable.from_columns(*held.columns(numbers))
        rows = self._rows_alone(view.shape[1])
        if len(view):
            rows.write(view[:], np.arange(len(view)))
        self._held = HeldRecords(Segments(), table, rows)

    def _named(self, held: HeldRecords, generation: int) -> FolderManifest:
        """Return the manifest, but for blobs and parts, of a folder in whose files all that is held lies."""
        listed = held.segments.listed
        return FolderManifest(
            kind=self._kind.name,
            generation=generation,
            metric=self._metric,
            dim=self._dim,
            index="Flat",
            count=len(held),
            files={} if listed is None else {"removed": listed},
            user=self._manifest.text,
            segments=tuple(part.entry for part in held.segments.parts),
        )

    def _fill(self, folder: Path, previous: FolderManifest | None) -> None:
        """Write all that is held into a folder, as the generation after `previous`."""
        held, number = self._held, 0 if previous is None else previous.generation + 1
        numbers = held.number(np.arange(len(held)))
        parts = write_rows(folder, number, held, numbers, self._dim or 1, self._metric)
        new = HeldRecords(Segments(parts), RecordTable(), None, self._kept_index()).filed(folder, number)
        write_generation(folder, self._named(new, number), new, self._blobs, self._manifest.parts, previous)

    def _kept_index(self) -> Any:
        """Return the index over what is held, as it is numbered without removed records."""
        return None

    def _undo_write(self, rows: VectorRows, ids: list[str], places: IndexArray) -> Recovery:
        """Return what takes back a write of `ids` into `places`; to be called before anything has changed."""
        held = self._held
        table, count = held.table, len(held.table)
        old = places[places < count]
        vectors, records = rows.view()[old], table.excerpt(old)

        def undo() -> None:
            rows.restore(vectors, old, count)
            table.restore(records, old, ids, count)
            self._held = held

        return undo

    def _finish_removal(self, segments: Segments, moves: Moves) -> Recovery:
        """Return what carries a removal through: moves may be made again, and take no copy of what goes."""
        held = self._held

        def finish() -> None:
            if moves.removed and held.rows is not None:
                held.rows.drop_index()
                held.rows.remove(moves)
                held.table.remove(moves)
            self._held = HeldRecords(segments, held.table, held.rows, held.index)

        return finish


def _without(segments: Segments, names: list[str]) -> Segments:
    """Return segments without the records of some ids."""
    found = segments.find(names)
    return segments.without(found[found >= 0])
