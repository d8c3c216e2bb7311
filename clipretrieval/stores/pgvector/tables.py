"""The tables of one store: records, blobs, and one row that says what they are."""

# ruff: noqa: S608  names are quoted, and values are parameters

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreUnavailableError,
)
from clipretrieval.stores.candidates import CandidateRecords
from clipretrieval.stores.checks import Batch, check_dim, check_label_kind
from clipretrieval.types import Label, Listing, Metric, Records, as_label_array

__all__ = ["LONGEST_ID", "MOST_DIMENSIONS", "PgVectorTables", "candidates_from"]

FORMAT = 1
MOST_DIMENSIONS = 16_000
"""The most that pgvector stores."""
BLOCK_VALUES, BLOCK_RECORDS = 1 << 23, 1 << 14
"""The most that is read at a time where all records are: 32 MiB of vectors."""
LISTED = 4096
LONGEST_ID = 2048
"""Bytes of an id: an index of PostgreSQL takes a third of a page."""
# A column of text takes all characters but one.
NUL, ESCAPE = "\0", "\x1a"

Connection = psycopg.Connection[Any]


class PgVectorTables:
    """The statements of one store.

    Parameters
    ----------
    name : str
        Of the table of records; the others are called after it.
    metric : Metric
    """

    def __init__(self, name: str, metric: Metric) -> None:
        self.name, self.metric = name, metric
        self._names = {
            "records": sql.Identifier(name),
            "by_label": sql.Identifier(f"{name}_label"),
            "by_number": sql.Identifier(f"{name}_number"),
            "about": sql.Identifier(f"{name}_store"),
            "blobs": sql.Identifier(f"{name}_blobs"),
            "graph": sql.Identifier(f"{name}_graph"),
            "made": sql.Identifier(f"{name}_graph_made"),
        }

    def statement(self, text: str) -> sql.Composed:
        """Return a statement with the tables' names in it."""
        return sql.SQL(text).format(**self._names)

    def open(self, connection: Connection, create: bool) -> None:
        """Make the tables, or make sure that they are this store's.

        Raises
        ------
        InvalidInputError
            If something else made the table.
        FingerprintMismatchError
            If it is there with another metric.
        StoreUnavailableError
            If it is not there and may not be made.
        """
        found = self._about(connection)
        if found is None and create:
            # Of two that make the same tables at once, one would fail.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('clipretrieval'))")
            found = self._about(connection) or self._made(connection)
        if found is None:
            raise StoreUnavailableError(
                f"there is no table {self.name!r} in the database; check the names, or leave out "
                "create=False to make it"
            )
        version, metric = found
        if version != FORMAT:
            raise StoreCorruptedError(
                f"the table {self.name!r} is of format version {version!r}; this version of clipretrieval "
                f"reads version {FORMAT}. Install one that reads version {version!r}"
            )
        if metric != str(self.metric):
            raise FingerprintMismatchError(
                f"the table {self.name!r} was made with metric {metric!r}; found "
                f"metric={str(self.metric)!r}. Open it with metric={metric!r}, or give another table"
            )

    def _about(self, connection: Connection) -> tuple[int, str] | None:
        # Asked of the catalogue itself: names that were looked up before stay unknown for a transaction.
        text = "SELECT relnamespace FROM pg_class WHERE relname = ANY(%s) AND pg_table_is_visible(oid)"
        found = connection.execute(text, [[self.name, f"{self.name}_store"]]).fetchall()
        if not found:
            return None
        if len(found) < 2 or found[0] != found[1]:
            raise InvalidInputError(
                f"the table {self.name!r} was not made by PgVectorStore; give another name as table="
            )
        version, metric = _row(connection.execute(self.statement("SELECT format, metric FROM {about}")))
        return int(version), str(metric)

    def _made(self, connection: Connection) -> tuple[int, str]:
        connection.execute(
            self.statement(
                """
                CREATE TABLE {about} (
                    format int NOT NULL, metric text NOT NULL, manifest text NOT NULL, dim int,
                    shortest float8 NOT NULL, longest float8 NOT NULL, ef_search int);
                -- Rows that fit into a page stay in one piece: a search need not fetch their vectors.
                CREATE TABLE {records} (
                    id text COLLATE "C" PRIMARY KEY, embedding vector NOT NULL, label text, number bigint,
                    metadata json NOT NULL) WITH (toast_tuple_target = 8160);
                CREATE INDEX {by_label} ON {records} (left(label, 200)) WHERE label IS NOT NULL;
                CREATE INDEX {by_number} ON {records} (number) WHERE number IS NOT NULL;
                CREATE TABLE {blobs} (name text PRIMARY KEY, content bytea NOT NULL);
                """
            )
        )
        text = "INSERT INTO {about} VALUES (%s, %s, '{{}}', NULL, 'infinity', 0, NULL)"
        connection.execute(self.statement(text), [FORMAT, str(self.metric)])
        return FORMAT, str(self.metric)

    def dim(self, connection: Connection) -> int | None:
        """Return the dimension that vectors are held to."""
        (found,) = _row(connection.execute(self.statement("SELECT dim FROM {about}")))
        return None if found is None else int(found)

    def lock(self, connection: Connection) -> None:
        """Wait until no other writer is in a transaction, and keep the next ones out of this one."""
        connection.execute(self.statement("SELECT 1 FROM {about} FOR UPDATE"))

    def upsert(self, connection: Connection, batch: Batch) -> None:
        """Add or replace the records of a batch."""
        self.lock(connection)
        check_dim(batch.vectors.shape[1], self.dim(connection))
        held = connection.execute(self.statement("SELECT number FROM {records} LIMIT 1")).fetchall()
        check_label_kind(batch.labels, as_label_array(["" if row[0] is None else row[0] for row in held]))
        self._widen(connection, batch)
        text = (
            "INSERT INTO {records} (id, embedding, label, number, metadata) VALUES (%s, %b, %s, %s, %s) "
            "ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding, label = excluded.label, "
            "number = excluded.number, metadata = excluded.metadata"
        )
        is_text = batch.labels.dtype == object
        rows = (
            (_written(name), row, _written(label) if is_text else None, None if is_text else label, metadata)
            for name, row, label, metadata in zip(
                batch.ids, batch.vectors, batch.labels.tolist(), batch.metadata, strict=True
            )
        )
        connection.cursor().executemany(self.statement(text), rows)

    def _widen(self, connection: Connection, batch: Batch) -> None:
        """Keep the dimension, and how long the shortest and the longest vector ever were.

        By these float32 can be trusted or not.
        """
        lengths = batch.norms[batch.norms > 0]
        text = (
            "UPDATE {about} SET dim = %(dim)s, shortest = least(shortest, %(shortest)s), "
            "longest = greatest(longest, %(longest)s) "
            "WHERE dim IS NULL OR shortest > %(shortest)s OR longest < %(longest)s"
        )
        bounds = {"shortest": float(lengths.min(initial=np.inf)), "longest": float(lengths.max(initial=0))}
        connection.execute(self.statement(text), {"dim": batch.vectors.shape[1], **bounds})

    def delete(self, connection: Connection, ids: list[str]) -> int:
        """Delete the records of the ids and return how many of them were there."""
        self.lock(connection)
        keys = [_written(name) for name in ids]
        return connection.execute(self.statement("DELETE FROM {records} WHERE id = ANY(%s)"), [keys]).rowcount

    def count(self, connection: Connection, label: Label | None) -> int:
        """Return the number of records, or of those with a label."""
        condition, values = _with_label(label)
        text = f"SELECT count(*) FROM {{records}} WHERE {condition}"
        return int(_row(connection.execute(self.statement(text), values))[0])

    def get(self, connection: Connection, ids: list[str]) -> Records:
        """Return the records of the ids, in their order, without those that are not there."""
        text = "SELECT id, embedding, label, number, metadata::text FROM {records} WHERE id = ANY(%s)"
        keys = list(dict.fromkeys(map(_written, ids)))
        rows = connection.cursor(binary=True).execute(self.statement(text), [keys])
        found = {_read(row[0]): row[1:] for row in rows}
        kept = [name for name in ids if name in found]
        vectors = np.empty((len(kept), self.dim(connection) or 0), dtype=np.float32)
        for place, name in enumerate(kept):
            vectors[place] = found[name][0]
        labels = as_label_array([_label(*found[name][1:3]) for name in kept])
        return Records(
            np.array(kept, dtype=object), vectors, labels, [json.loads(found[name][3]) for name in kept]
        )

    def everything(self, connection: Connection, dim: int) -> Iterator[CandidateRecords]:
        """Yield all records as they are at one moment, some at a time.

        The connection must be in a transaction.
        """
        with connection.cursor("clipretrieval", binary=True) as cursor:
            cursor.execute(self.statement("SELECT id, embedding, label, number FROM {records}"))
            while rows := cursor.fetchmany(min(BLOCK_RECORDS, max(1, BLOCK_VALUES // dim))):
                yield candidates_from(rows)

    def listing(self, connection: Connection, label: Label | None, after: str) -> Listing:
        """Return the ids and labels of the next records behind an id, in the order of ids."""
        condition, values = _with_label(label)
        text = (
            f"SELECT id, label, number FROM {{records}} WHERE {condition} AND id > %(after)s "
            f"ORDER BY id LIMIT {LISTED}"
        )
        rows = connection.execute(self.statement(text), {**values, "after": _written(after)}).fetchall()
        labels = as_label_array([_label(*row[1:]) for row in rows])
        return Listing(np.array([_read(row[0]) for row in rows], dtype=object), labels)

    def read_manifest(self, connection: Connection) -> str:
        """Return the manifest's JSON text."""
        return str(_row(connection.execute(self.statement("SELECT manifest FROM {about}")))[0])

    def write_manifest(self, connection: Connection, text: str) -> None:
        """Replace the manifest's JSON text."""
        connection.execute(self.statement("UPDATE {about} SET manifest = %s"), [text])

    def read_blob(self, connection: Connection, name: str) -> bytes | None:
        """Return a blob."""
        text = "SELECT content FROM {blobs} WHERE name = %s"
        found = connection.cursor(binary=True).execute(self.statement(text), [name]).fetchone()
        return None if found is None else bytes(found[0])

    def write_blob(self, connection: Connection, name: str, content: bytes | None) -> None:
        """Replace a blob, or remove it."""
        self.lock(connection)
        connection.execute(self.statement("DELETE FROM {blobs} WHERE name = %s"), [name])
        if content is not None:
            connection.execute(self.statement("INSERT INTO {blobs} VALUES (%s, %b)"), [name, content])


def candidates_from(rows: list[tuple[Any, ...]]) -> CandidateRecords:
    """Return records from rows that begin with id, embedding, label, number."""
    vectors = np.stack([row[1] for row in rows]) if rows else np.empty((0, 0), dtype=np.float32)
    ids = np.array([_read(row[0]) for row in rows], dtype=object)
    return CandidateRecords(ids, vectors, as_label_array([_label(row[2], row[3]) for row in rows]))


def _row(cursor: psycopg.Cursor[Any]) -> tuple[Any, ...]:
    found = cursor.fetchone()
    if found is None:
        raise StoreCorruptedError("a row that PgVectorStore keeps is gone; restore it from a copy")
    return tuple(found)


def _with_label(label: Label | None) -> tuple[str, dict[str, Any]]:
    if label is None:
        return "true", {}
    if isinstance(label, int):
        return "number = %(label)s", {"label": label}
    return "left(label, 200) = left(%(label)s, 200) AND label = %(label)s", {"label": _written(label)}


def _label(label: str | None, number: int | None) -> Label:
    return _read(label) if label is not None else int(number or 0)


def _written(text: str) -> str:
    """Return a text as a column can hold it; `_read` is the way back."""
    if NUL in text or ESCAPE in text:
        return text.replace(ESCAPE, f"{ESCAPE}1").replace(NUL, f"{ESCAPE}0")
    return text


def _read(text: str) -> str:
    if ESCAPE in text:
        return text.replace(f"{ESCAPE}0", NUL).replace(f"{ESCAPE}1", ESCAPE)
    return text
