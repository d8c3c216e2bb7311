"""How the table of a `PgVectorStore` is searched: by comparing all of it, or through pgvector's graph."""

# ruff: noqa: S608  names are quoted, and values are parameters

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg

from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import StoreLockedError, UnsupportedOperationError
from clipretrieval.stores.candidates import (
    NEAREST,
    SAMPLE,
    candidate_count,
    least_effort,
    nearest_of,
    nearest_of_blocks,
    together,
)
from clipretrieval.stores.checks import check_dim
from clipretrieval.stores.exact import row_norms
from clipretrieval.stores.memory import MemoryStore
from clipretrieval.stores.pgvector.tables import PgVectorTables, candidates_from
from clipretrieval.types import FloatArray, Metric, Neighbors

__all__ = ["PgVectorSearch"]

MANY = 16
"""From so many queries on, to read all records once costs less than a scan in the server for each."""
MOST_TIES = 10_000
"""Records that may be as near as the farthest wanted one, for the server to send them."""
# Between these lengths squares and products stay within float32, in which the server computes.
SHORTEST, LONGEST = 1e-15, 1e15
FUNCTIONS = {
    Metric.L2: "vector_l2_squared_distance",
    Metric.COSINE: "cosine_distance",
    Metric.IP: "vector_negative_inner_product",
}
# The order by one of these alone can follow the graph.
OPERATORS = {Metric.L2: ("<->", "l2"), Metric.COSINE: ("<=>", "cosine"), Metric.IP: ("<#>", "ip")}
INDEXED_DIMENSIONS = 2000
"""The most that pgvector's graph takes."""
EFFORTS = (40, 80, 160, 320, 640, 1000)
"""Settings of ``hnsw.ef_search``, of which 1000 is the greatest."""

Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class _Facts:
    """What decides how the table is searched."""

    dim: int
    shortest: float
    longest: float
    records: float
    """As PostgreSQL's statistics have it; counted where there are none yet."""
    effort: int | None
    """Of a search in the graph; None where there is none, or it is being measured."""


class PgVectorSearch:
    """Searches in one table.

    Parameters
    ----------
    tables : PgVectorTables
    exact_up_to : int
        The most values (records × dimension) that are always compared; more are searched through the graph,
        where there is one.
    """

    def __init__(self, tables: PgVectorTables, exact_up_to: int) -> None:
        self._tables, self._metric, self._limit = tables, tables.metric, exact_up_to
        self._warned = False

    def search(self, connection: Connection, queries: FloatArray, k: int) -> Neighbors:
        """Return the `k` nearest records of each query."""
        facts = self._facts(connection)
        if facts is None:
            return MemoryStore(self._metric).search(queries, k)
        check_dim(queries.shape[1], facts.dim)
        length = candidate_count(k)
        if facts.records * facts.dim > self._limit:
            if facts.effort is not None and length <= EFFORTS[-1]:
                return self._through_graph(connection, queries, k, max(length, facts.effort), facts)
            self._warn(facts)
        return self._comparing_all(connection, queries, k, facts)

    def build(self, connection: Connection) -> float:
        """Build the graph while others go on, choose how wide searches look, and return their recall@10.

        The connection must commit each statement.
        """
        facts = self._facts(connection)
        if facts is None or facts.dim > INDEXED_DIMENSIONS:
            raise UnsupportedOperationError(
                f"pgvector builds its graph over 1 to {INDEXED_DIMENSIONS:,} dimensions; the table "
                f"{self._tables.name!r} has {'none yet' if facts is None else f'{facts.dim:,}'}. Searches "
                "compare all records"
            )
        operators = OPERATORS[self._metric][1]
        text = "SELECT pg_try_advisory_lock(hashtext('clipretrieval:' || %s))"  # until the connection closes
        if connection.execute(text, [self._tables.name]).fetchone() != (True,):
            raise StoreLockedError(f"another build_index() of the table {self._tables.name!r} is under way")
        for text in (
            "SET lock_timeout = 0",
            "SET statement_timeout = 0",
            "DROP INDEX CONCURRENTLY IF EXISTS {made}",  # of a build that was killed
        ):
            connection.execute(self._tables.statement(text))
        try:
            text = f"({self._column(facts)} vector_{operators}_ops)"
            text = f"CREATE INDEX CONCURRENTLY {{made}} ON {{records}} USING hnsw {text}"
            connection.execute(self._tables.statement(text))
        except psycopg.Error:
            with suppress(psycopg.Error):  # every upsert would extend it, and no search use it
                connection.execute(self._tables.statement("DROP INDEX CONCURRENTLY IF EXISTS {made}"))
            raise
        for text in (
            "UPDATE {about} SET ef_search = NULL",
            "DROP INDEX CONCURRENTLY IF EXISTS {graph}",
            "ALTER INDEX {made} RENAME TO {graph}",
            "ANALYZE {records}",
        ):
            connection.execute(self._tables.statement(text))
        effort, recall = self._tuned(connection, facts)
        connection.execute(self._tables.statement("UPDATE {about} SET ef_search = %s"), [effort])
        return recall

    @staticmethod
    def _column(facts: _Facts) -> str:
        """Return what the graph is built over: pgvector wants the dimension in the type."""
        return f"(embedding::vector({facts.dim}))"

    def _tuned(self, connection: Connection, facts: _Facts) -> tuple[int, float]:
        """Return the least effort whose recall is enough, as measured on stored vectors, and the recall."""
        text = "SELECT id, embedding, label, number FROM {records} ORDER BY random() LIMIT %s"
        rows = connection.cursor(binary=True).execute(self._tables.statement(text), [SAMPLE]).fetchall()
        found, asked = candidates_from(rows), NEAREST + 1
        if not len(found):
            return EFFORTS[0], 1.0
        with connection.transaction():
            true = self._by_reading(connection, found.vectors, asked, facts)
        return least_effort(
            EFFORTS,
            found.ids,
            true,
            lambda effort: self._through_graph(connection, found.vectors, asked, effort, facts),
        )

    def _facts(self, connection: Connection) -> _Facts | None:
        """Return what decides about a search; None where no vector was ever stored."""
        text = """
            SELECT dim, shortest, longest,
                CASE WHEN reltuples < 0 THEN (SELECT count(*) FROM {records}) ELSE reltuples END, ef_search
            FROM {about}, pg_class WHERE pg_class.oid = to_regclass(%s)
            """
        row = connection.execute(self._tables.statement(text), [f'"{self._tables.name}"']).fetchone()
        return None if row is None or row[0] is None else _Facts(*row)

    def _warn(self, facts: _Facts) -> None:
        if not self._warned and facts.effort is None and facts.dim <= INDEXED_DIMENSIONS:
            self._warned = True
            warn_caller(
                f"the table {self._tables.name!r} holds more values than exact_up_to={self._limit} and has "
                "no graph, so every search compares all of them. Call build_index() once, or raise "
                "exact_up_to"
            )

    def _comparing_all(self, connection: Connection, queries: FloatArray, k: int, facts: _Facts) -> Neighbors:
        lengths = row_norms(queries)
        lengths = lengths[lengths > 0]
        within = (
            facts.shortest >= SHORTEST
            and facts.longest <= LONGEST
            and lengths.min(initial=1) >= SHORTEST
            and lengths.max(initial=1) <= LONGEST
        )
        if not within or len(queries) >= MANY:
            return self._by_reading(connection, queries, k, facts)
        return together(
            [self._by_scan(connection, queries[row : row + 1], k, facts) for row in range(len(queries))]
        )

    def _by_scan(self, connection: Connection, query: FloatArray, k: int, facts: _Facts) -> Neighbors:
        """Let the server compare one query with all records, and settle here what its rounding left open."""
        length, far = candidate_count(k), f"{FUNCTIONS[self._metric]}(embedding, %(query)b)"
        columns = f"SELECT id, embedding, label, number, {far} AS far FROM {{records}}"
        cursor = connection.cursor(binary=True)
        values: dict[str, Any] = {"query": query[0], "length": length}
        text = f"{columns} ORDER BY far LIMIT %(length)s"
        rows = cursor.execute(self._tables.statement(text), values).fetchall()
        near = nearest_of(candidates_from(rows), query, k, self._metric)
        if len(rows) == length:
            error = self._error(query, float(near.distances[0, -1]), facts)
            # Distances tie that are rounded to one float32.
            kth = np.float32(near.distances[0, -1] + error)
            limit = float(np.nextafter(kth, np.float32(np.inf))) + error
            if rows[-1][4] <= limit:
                text, most = f"{columns} WHERE {far} <= %(limit)s LIMIT %(length)s", length + MOST_TIES
                values |= {"length": most, "limit": limit}
                rows = cursor.execute(self._tables.statement(text), values).fetchall()
                if len(rows) == most:
                    return self._by_reading(connection, query, k, facts)
                near = nearest_of(candidates_from(rows), query, k, self._metric)
        return near

    def _error(self, query: FloatArray, distance: float, facts: _Facts) -> float:
        """Bound the error of a distance that the server adds up in float32."""
        relative = 2 * (facts.dim + 8) * float(np.finfo(np.float32).eps)
        if self._metric is Metric.L2:
            return relative * distance
        return relative * (
            1.0 if self._metric is Metric.COSINE else float(row_norms(query)[0]) * facts.longest
        )

    def _by_reading(self, connection: Connection, queries: FloatArray, k: int, facts: _Facts) -> Neighbors:
        """Read all records, block by block, and keep the nearest of each query."""
        blocks = self._tables.everything(connection, facts.dim)
        return nearest_of_blocks(blocks, queries, k, self._metric)

    def _through_graph(
        self, connection: Connection, queries: FloatArray, k: int, effort: int, facts: _Facts
    ) -> Neighbors:
        """Compare exactly what the graph leads to; where that is too little, all records."""
        text = self._tables.statement(
            "SELECT id, embedding, label, number FROM {records} "
            f"ORDER BY {self._column(facts)} {OPERATORS[self._metric][0]} %b LIMIT %s"
        )
        answers = []
        with connection.transaction():
            connection.execute(
                "SELECT set_config('hnsw.ef_search', %s, true), set_config('enable_seqscan', 'off', true)",
                [str(effort)],
            )
            for row in range(len(queries)):
                query = queries[row : row + 1]
                rows = connection.cursor(binary=True).execute(text, [query[0], candidate_count(k)]).fetchall()
                if len(rows) < k:
                    answers.append(self._comparing_all(connection, query, k, facts))
                else:
                    answers.append(nearest_of(candidates_from(rows), query, k, self._metric))
        return together(answers)
