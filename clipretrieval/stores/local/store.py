"""What the stores that keep their vectors in this process have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.repr import safe_repr
from clipretrieval.errors import InvalidInputError
from clipretrieval.stores.checks import (
    check_batch,
    check_dim,
    check_k,
    check_label_kind,
    check_lookup_ids,
    check_manifest,
    check_queries,
)
from clipretrieval.stores.exact import nearest
from clipretrieval.stores.local.folder import Snapshot
from clipretrieval.stores.local.folder_manifest import LARGEST_MANIFEST
from clipretrieval.stores.local.guarded import Guarded
from clipretrieval.stores.local.rows import VectorRows
from clipretrieval.stores.local.table import RecordTable
from clipretrieval.stores.local.undo import finish_removal, undo_write
from clipretrieval.stores.scan import check_label, listings
from clipretrieval.types import FloatArray, Label, Listing, Metric, Neighbors, Records

__all__ = ["LocalStore"]


class LocalStore(Guarded):
    """The five verbs over a `RecordTable` and `VectorRows`; threads may search while one writes.

    Subclasses say where the rows lie (`_new_rows`) and may act before each write and at the close.
    """

    _own = Guarded._own | {"_viewed"}
    _viewed: tuple[str, Mapping[str, Any]] | None = None

    def __init__(self, metric: Metric | str) -> None:
        super().__init__()
        self._metric = Metric.parse(metric)
        self._clear()

    def _clear(self) -> None:
        self._dim: int | None = None
        self._table = RecordTable()
        self._rows: VectorRows | None = None
        self._manifest, self._viewed = "{}", None
        self._changed = False

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
        """Add vectors, replacing wholly those whose id is already there.

        Parameters
        ----------
        ids : sequence of str, length n
            Not empty, unique within the call.
        vectors : array_like of real numbers, shape (n, dim)
            Finite, also as float32. Under the cosine metric, not zero.
        labels : sequence of int or of str, length n
            Of the type that the store already holds.
        metadata : sequence of mappings, length n, optional
            JSON values; copied.

        Raises
        ------
        InvalidInputError
            On any malformed argument, before anything is stored.
        StoreError
            If the store is closed, read-only, or held by another writer.
        """
        batch = check_batch(ids, vectors, labels, metadata, self._metric)
        with self._writing():
            dim = batch.vectors.shape[1]
            check_dim(dim, self._dim)
            check_label_kind(batch.labels, self._table.labels)
            rows = self._new_rows(dim) if self._rows is None else self._rows
            places = self._table.places(batch.ids)
            vectors = self._stored(batch.vectors, batch.norms)
            self._recovery = undo_write(rows, self._table, batch.ids, places)
            self._table.reserve(batch, places)
            rows.write(vectors, places)
            self._table.write(batch, places)
            self._dim, self._rows, self._changed, self._recovery = dim, rows, True, None
            self._wrote()

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        """Return the `k` nearest stored vectors of each query.

        Parameters
        ----------
        vectors : array_like of real numbers, shape (n_queries, dim)
            Finite. Under the cosine metric, not zero.
        k : int
            At least 1. May exceed the count: the rest is padded.

        Returns
        -------
        Neighbors
            Arrays of shape (n_queries, k), rows ascending, equal distances ordered by id. Distances are
            computed in float64 and rounded to float32; those beyond its range become its largest value.

        Raises
        ------
        InvalidInputError
            On any malformed argument.
        StoreError
            If the store is closed.
        """
        queries, norms = check_queries(vectors, self._metric)
        reach = check_k(k)
        with self._reading():
            check_dim(queries.shape[1], self._dim)
            if self._rows is None or not len(self._table):
                positions = np.full((len(queries), reach), -1, dtype=np.int64)
                distances = np.full((len(queries), reach), np.inf, dtype=np.float32)
            else:
                shortlist = self._rows.shortlist(float(self._table.norms.max()))
                queries = self._stored(queries, norms)
                candidates = self._rows.candidates(queries, reach)
                positions, distances = nearest(
                    queries, self._rows.view(), self._table.ids, reach, self._metric, shortlist, candidates
                )
            ids, labels = self._table.take(positions)
        return Neighbors(ids, distances, labels)

    def get(self, ids: Sequence[str]) -> Records:
        """Return the records of `ids`, in that order; ids that are not stored are left out.

        Raises
        ------
        InvalidInputError
            If `ids` is not a sequence of str.
        StoreError
            If the store is closed.
        """
        names = check_lookup_ids(ids)
        with self._reading():
            found = self._table.find(names)
            found = found[found >= 0]
            if self._rows is None:
                vectors = np.empty((0, self._dim or 0), dtype=np.float32)
            else:
                vectors = self._original(self._rows.view()[found], self._table.norms[found])
            names_found, labels = self._table.take(found)
            return Records(names_found, vectors, labels, self._table.metadata(found))

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the records of `ids` and return how many of them were there.

        Raises
        ------
        InvalidInputError
            If `ids` is not a sequence of str.
        StoreError
            If the store is closed, read-only, or held by another writer.
        """
        names = check_lookup_ids(ids)
        with self._writing():
            moves = self._table.plan_removal(names)
            if moves.removed and self._rows is not None:
                self._recovery = finish_removal(self._rows, self._table, moves)
                self._changed = True
                self._rows.remove(moves)
                self._table.remove(moves)
                self._recovery = None
                self._wrote()
            return moves.removed

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through all ids and labels, or those of one label, as they are when this is called.

        Raises
        ------
        InvalidInputError
            If `label` is neither int nor str.
        StoreError
            If the store is closed.
        """
        wanted = check_label(label)
        with self._reading():
            return listings(self._table.ids.copy(), self._table.labels.copy(), wanted)

    def count(self) -> int:
        """Return the number of stored vectors."""
        self._require_open()
        return len(self._table)

    def read_manifest(self) -> dict[str, Any]:
        """Return a copy of what `write_manifest` last kept; an empty dict if nothing was."""
        self._require_open()
        found: dict[str, Any] = json.loads(self._manifest)
        return found

    def _view_manifest(self) -> Mapping[str, Any]:
        """Return what `read_manifest` does, parsed once for all readers, who must not change it."""
        self._require_open()
        text, viewed = self._manifest, self._viewed
        if viewed is None or viewed[0] is not text:
            self._viewed = viewed = (text, json.loads(text))
        return viewed[1]

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Keep a small JSON object beside the vectors, replacing the one before.

        Raises
        ------
        InvalidInputError
            If it holds anything but JSON values, or takes more than 32 MiB as JSON.
        StoreError
            If the store is closed, read-only, or held by another writer.
        """
        text = check_manifest(manifest)
        if len(text) > LARGEST_MANIFEST:
            raise InvalidInputError(
                f"the manifest takes {len(text)} characters as JSON; {LARGEST_MANIFEST} is the most. Keep "
                "what is large beside the store"
            )
        with self._writing():
            self._changed |= text != self._manifest
            self._manifest = text

    def flush(self) -> None:
        """Return when everything written so far is durable and visible to searches."""
        self._require_open()

    def close(self) -> None:
        """Flush and free what the store holds; calling it again does nothing."""
        with self._lock.write(), self._computing():
            if not self._closed:
                self._recover()
                self._finish()
                dim = self._dim
                self._clear()
                self._dim, self._closed = dim, True

    @safe_repr
    def __repr__(self) -> str:
        state = "closed" if self._closed else f"count={len(self._table)}"
        return f"{type(self).__name__}(metric={str(self._metric)!r}, dim={self._dim}, {state})"

    def _new_rows(self, dim: int) -> VectorRows:
        """Return empty rows for vectors of dimension `dim`."""
        raise NotImplementedError

    def _wrote(self) -> None:
        """Do what is due after records came or went; called with the lock held alone."""

    def _finish(self) -> None:
        """Do what must be done before the contents are let go."""

    def _stored(self, vectors: FloatArray, norms: npt.NDArray[np.float64]) -> FloatArray:
        """Return vectors as they lie in the rows."""
        return vectors

    def _original(self, rows: FloatArray, norms: npt.NDArray[np.float64]) -> FloatArray:
        """Return vectors as they were given, undoing `_stored`."""
        return rows

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._metric, self._dim, self._table, self._rows, self._manifest)

    def _adopt(self, snapshot: Snapshot) -> None:
        """Take over what a folder holds."""
        self._metric, self._dim, self._manifest = snapshot.metric, snapshot.dim, snapshot.manifest
        self._table, self._rows, self._changed = snapshot.table, snapshot.rows, False
