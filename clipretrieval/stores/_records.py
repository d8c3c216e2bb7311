"""Ids, labels, metadata and norms in an SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores._table import RecordTable
from clipretrieval.types import as_label_array

__all__ = ["read_records", "write_records"]

# A column without a type keeps each label as it was given: integer or text.
SCHEMA = """
CREATE TABLE records (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    label NOT NULL,
    metadata TEXT NOT NULL,
    norm REAL NOT NULL
)
"""
SELECTION = "SELECT id, label, metadata, norm FROM records ORDER BY row"


def write_records(path: Path, table: RecordTable) -> None:
    """Write a table into the new or empty file `path`.

    Raises
    ------
    OSError
        If SQLite cannot write; its own error is the cause.
    """
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            # The file is not yet anybody's: a crash discards it whole, so it needs no journal.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            connection.execute(SCHEMA)
            connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", _tuples(table))
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise OSError(f"SQLite could not write {path.name}: {error}") from error


def read_records(path: Path) -> RecordTable:
    """Read a table that `write_records` wrote.

    Raises
    ------
    StoreCorruptedError
        If the file is not such a table.
    """
    try:
        address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            found = connection.execute(SELECTION).fetchall()
        if not found:
            raise StoreCorruptedError(f"{path} holds no records")
        ids, labels, metadata, norms = map(list, zip(*found, strict=True))
        table = RecordTable.from_columns(ids, as_label_array(labels), np.array(norms, dtype=float), metadata)
        if len(set(ids)) < len(ids):
            raise StoreCorruptedError(f"{path} holds an id more than once")
    except (sqlite3.Error, InvalidInputError, TypeError, ValueError) as error:
        raise StoreCorruptedError(f"{path} is not a table of records: {error}") from error
    return table


def _tuples(table: RecordTable) -> Iterator[tuple[int, str, int | str, str, float]]:
    return zip(
        range(len(table)),
        table.ids.tolist(),
        table.labels.tolist(),
        table.metadata_texts,
        table.norms.tolist(),
        strict=True,
    )
