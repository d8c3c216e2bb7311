"""Ids, labels, metadata and norms in an SQLite file."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._util.checks import shown
from clipretrieval._util.text import parse_json
from clipretrieval.errors import InvalidInputError
from clipretrieval.stores.local.folder_manifest import damaged
from clipretrieval.stores.local.table import RecordTable
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
CANNOT_OPEN = "unable to open database file"
# SQLite's own limit in bytes, which it takes as a C int.
LONGEST_VALUE = 10**9
SELECTION = "SELECT row, id, label, metadata, norm FROM records ORDER BY row"
# The oldest name of the table of tables, which every SQLite knows.
TABLES = "SELECT type, name, sql FROM sqlite_master LIMIT 2"


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


def read_records(path: Path, count: int) -> RecordTable:
    """Read a table of `count` records that `write_records` wrote, and check every value.

    Raises
    ------
    StoreCorruptedError
        If the file is not such a table.
    """
    try:
        ids, labels, metadata, norms = _read_columns(path, count)
        packed = as_label_array(labels)
        for text in set(metadata):
            if not isinstance(parse_json(text), dict):
                raise InvalidInputError(f"metadata must be an object; got {shown(text)}")
    except (sqlite3.Error, InvalidInputError, ValueError) as error:
        if str(error) == CANNOT_OPEN:  # says nothing of what is in it
            raise OSError(f"SQLite could not open {path.name}: {error}") from error
        raise damaged(path, f"it is not a table of {count} records ({error})") from error
    return RecordTable.from_columns(ids, packed, np.array(norms), metadata)


def _read_columns(path: Path, count: int) -> tuple[list[str], list[Any], list[str], list[float]]:
    ids: list[str] = []
    labels: list[Any] = []
    metadata: list[str] = []
    norms: list[float] = []
    held, most = 0, path.stat().st_size
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as connection:
        _restrict(connection, most)
        tables = connection.execute(TABLES).fetchall()
        if tables != [("table", "records", SCHEMA.strip())]:  # a view might have no end
            raise InvalidInputError(f"its schema is another: {shown(tables)}")
        for row, name, label, text, norm in connection.execute(SELECTION):
            if row != len(ids) or row >= count:
                raise InvalidInputError(f"row {row} follows {len(ids)} rows")
            if not (isinstance(name, str) and name and isinstance(text, str) and isinstance(norm, float)):
                raise InvalidInputError(f"row {row} holds {shown((name, text, norm))}")
            # In a crafted file many records may share their bytes.
            held += len(name) + len(text) + (len(label) if isinstance(label, str | bytes) else 0)
            if held > most:
                raise InvalidInputError(f"its records are longer than the file of {most} bytes")
            ids.append(name)
            labels.append(label)
            metadata.append(text)
            norms.append(norm)
    if len(ids) != count:
        raise InvalidInputError(f"it has {len(ids)} rows")
    if len(set(ids)) < count:
        raise InvalidInputError("it holds an id more than once")
    return ids, labels, metadata, norms


def _restrict(connection: sqlite3.Connection, size: int) -> None:
    """Let nothing run that a file may hold, which may be anybody's, and no value be longer than the file."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(max(size, 1000), LONGEST_VALUE))
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)


def _tuples(table: RecordTable) -> Iterator[tuple[int, str, int | str, str, float]]:
    return zip(
        range(len(table)),
        table.ids.tolist(),
        table.labels.tolist(),
        table.metadata_texts,
        table.norms.tolist(),
        strict=True,
    )
