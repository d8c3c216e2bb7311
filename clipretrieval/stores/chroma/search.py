"""How a Chroma collection is searched: by comparing all of it here, or through Chroma's graph."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from clipretrieval._util.warning import warn_caller
from clipretrieval.stores.chroma.records import ChromaRecords
from clipretrieval.stores.exact import nearest_rows
from clipretrieval.stores.memory import MemoryStore
from clipretrieval.types import AnyArray, FloatArray, Metric, Neighbors, as_label_array

__all__ = ["ChromaSearch"]

# How many values (records × dimension) an exact search compares: a copy of 512 MiB, where one serves for all
# searches; some seconds, where every search reads all records from a server.
EXACT_VALUES = 1 << 27
EXACT_VALUES_SHARED = 1 << 23


class ChromaSearch:
    """Searches in a collection, exact up to a size.

    Parameters
    ----------
    records, metric
        Of the collection.
    exclusive : bool
        Whether only the owner of this object changes the collection, so that a copy of it stays true.
    exact : bool
        Whether to compare all records where they are not too many.
    limit : int or None
        The most values (records × dimension) that are compared; None for the default.
    """

    def __init__(
        self, records: ChromaRecords, metric: Metric, exclusive: bool, exact: bool, limit: int | None
    ) -> None:
        self._records, self._metric = records, metric
        self._exclusive, self._exact = exclusive, exact
        self._limit = (EXACT_VALUES if exclusive else EXACT_VALUES_SHARED) if limit is None else limit
        self._warned = False
        self._reading = threading.Lock()
        self._copy: MemoryStore | None = None

    @contextmanager
    def changing(self) -> Iterator[MemoryStore | None]:
        """Hold the copy, if there is one, while the collection changes; after a failure it is read anew."""
        copy, self._copy = self._copy, None
        yield copy
        self._copy = copy

    def forget(self) -> None:
        """Free the copy."""
        self._copy = None

    def search(self, queries: FloatArray, k: int) -> Neighbors:
        """Return the `k` nearest records of each query, padded only where there are fewer."""
        count = self._records.count()
        length = min(count, k + k // 4 + 32)
        # Where the graph would be asked for all records, comparing all of them costs less.
        if length == count or (self._exact and self._within_limit(count * queries.shape[1])):
            return self._read_all(queries.shape[1]).search(queries, k)
        return self._through_graph(queries, k, length)

    def _within_limit(self, values: int) -> bool:
        if values <= self._limit:
            return True
        if not self._warned:
            self._warned = True
            warn_caller(
                f"{self._records.where} holds {values} values, more than exact_up_to={self._limit}: it is "
                "searched through Chroma's graph, which may miss neighbors. Raise exact_up_to, or "
                "accept it with exact=False"
            )
        return False

    def _read_all(self, dim: int) -> MemoryStore:
        """Return a store in memory with all records."""
        with self._reading:
            if self._copy is not None:
                return self._copy
            copy = MemoryStore(self._metric)
            for found in self._records.fetch(self._records.ids(), dim):
                copy.upsert(found.ids, found.vectors, found.labels)
            if self._exclusive:
                self._copy = copy
            return copy

    def _through_graph(self, queries: FloatArray, k: int, length: int) -> Neighbors:
        ids: AnyArray = np.full((len(queries), k), "", dtype=object)
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        labels: AnyArray | None = None
        short = []
        for place, found in enumerate(self._records.candidates(queries, length)):
            if len(found.ids) < k:  # the graph does not lead to enough
                short.append(place)
                continue
            names, own = np.array(found.ids, dtype=object), as_label_array(found.labels)
            if labels is None:
                labels = np.empty((len(queries), k), dtype=own.dtype)
            query = queries[place : place + 1]
            positions, distances[place] = nearest_rows(query, found.vectors, names, k, self._metric)
            ids[place], labels[place] = names[positions[0]], own[positions[0]]
        if labels is None:
            return self._read_all(queries.shape[1]).search(queries, k)
        if short:
            rest = self._read_all(queries.shape[1]).search(queries[short], k)
            ids[short], distances[short], labels[short] = rest.ids, rest.distances, rest.labels
        return Neighbors(ids, distances, labels)
