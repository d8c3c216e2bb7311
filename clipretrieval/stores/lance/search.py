"""How a `LanceStore` is searched: in a copy in memory, or through Lance's index."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from lancedb.index import BTree, IvfSq

from clipretrieval._util.rounding import without_range_warnings
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import UnsupportedOperationError
from clipretrieval.stores.candidates import (
    NEAREST,
    SAMPLE,
    candidate_count,
    exact_copy,
    least_effort,
    nearest_of,
    nearest_of_blocks,
    together,
)
from clipretrieval.stores.checks import check_dim
from clipretrieval.stores.lance.tables import FOUND, INDEX, METRICS, LanceTables, candidates_in
from clipretrieval.stores.local.store import LocalStore
from clipretrieval.stores.memory import MemoryStore
from clipretrieval.types import FloatArray, Neighbors

__all__ = ["LanceSearch"]

EFFORTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of lists that a search of the index looks into."""
SMALLEST = 1000
"""Records from which an index can be trained."""


class LanceSearch:
    """Searches in one table.

    Parameters
    ----------
    tables : LanceTables
    exact_up_to : int
        The most values (records × dimension) of a copy in memory.
    """

    def __init__(self, tables: LanceTables, exact_up_to: int) -> None:
        self._tables, self._metric, self._limit = tables, tables.metric, exact_up_to
        self._reading = threading.Lock()
        self._copy: LocalStore | None = None
        self._version = -1
        self._effort: int | None = None
        self._warned = False

    def follow(self, before: int, after: int, change: Callable[[LocalStore], object]) -> None:
        """Change the copy as one write has changed the table, if it is of the version before that."""
        copy, self._copy = self._copy, None  # to be read anew if this is interrupted
        if copy is not None and self._version == before and after <= before + 1:
            with without_range_warnings():
                change(copy)
            self._version, self._copy = after, copy

    def forget(self) -> None:
        """Free the copy."""
        self._copy = None

    def search(self, queries: FloatArray, k: int) -> Neighbors:
        """Return the `k` nearest records of each query."""
        records = self._tables.records()
        if records is None:
            return MemoryStore(self._metric).search(queries, k)
        dim = self._tables.dim() or 0
        check_dim(queries.shape[1], dim)
        with self._tables.translated():
            count = records.count_rows()
        if count * dim <= self._limit:
            return self._read_all().search(queries, k)
        self.forget()
        effort = self._index_effort()
        if effort is not None:
            return self._through_index(queries, k, effort)
        if not self._warned:
            self._warned = True
            warn_caller(
                f"the {self._tables.where} holds more values than exact_up_to={self._limit} and has no "
                "index, so every search reads all of it. Call build_index() once, or raise exact_up_to"
            )
        return self._reading_blocks(queries, k)

    def build(self) -> float:
        """Train the index, choose how wide searches look, and return their recall@10."""
        records = self._tables.records()
        count = 0 if records is None else records.count_rows()
        if count < SMALLEST:
            raise UnsupportedOperationError(
                f"an index is trained from {SMALLEST:,} records on; the {self._tables.where} holds "
                f"{count:,}. Searches compare all of them"
            )
        records.create_index("vector", config=IvfSq(distance_type=METRICS[self._metric]))
        records.create_index("id", config=BTree())  # by which later upserts find what they replace
        sampled = next(self._tables.blocks(records))
        step = max(1, len(sampled) // SAMPLE)
        queries, asked = sampled.vectors[::step][:SAMPLE], NEAREST + 1
        effort, recall = least_effort(
            EFFORTS,
            sampled.ids[::step][:SAMPLE],
            self._reading_blocks(queries, asked),
            lambda effort: self._through_index(queries, asked, effort),
        )
        self._tables.write(INDEX, json.dumps({"nprobes": effort}).encode())
        self._effort = effort
        return recall

    def _index_effort(self) -> int | None:
        """Return how many lists to look into; None where no index was built."""
        if self._effort is None:
            kept = self._tables.read(INDEX)
            self._effort = None if kept is None else int(json.loads(kept)["nprobes"])
        return self._effort

    def _read_all(self) -> LocalStore:
        """Return a copy of the newest version."""
        with self._reading:
            while True:
                records = self._tables.records()
                version = records.version
                if self._copy is not None and self._version == version:
                    return self._copy
                copy = exact_copy(self._metric)
                for block in self._tables.blocks(records):
                    copy.upsert(block.ids.tolist(), block.vectors, block.labels.tolist())
                self._copy, self._version = copy, version
                if records.version == version:  # no other thread went on to a newer one meanwhile
                    return copy

    def _reading_blocks(self, queries: FloatArray, k: int) -> Neighbors:
        return nearest_of_blocks(self._tables.blocks(self._tables.records()), queries, k, self._metric)

    def _through_index(self, queries: FloatArray, k: int, effort: int) -> Neighbors:
        """Compare exactly what the index leads to; where that is too little, all records."""
        records, answers = self._tables.records(), []
        for row in range(len(queries)):
            query = queries[row : row + 1]
            with self._tables.translated():
                rows = (
                    records.search(query[0], vector_column_name="vector")
                    .distance_type(METRICS[self._metric])
                    .nprobes(effort)
                    .refine_factor(2)
                    .limit(candidate_count(k))
                    .select([*FOUND, "_distance"])
                    .to_arrow()
                )
            if len(rows) < k:
                answers.append(self._reading_blocks(query, k))
            else:
                answers.append(nearest_of(candidates_in(rows), query, k, self._metric))
        return together(answers)
