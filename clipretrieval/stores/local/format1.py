"""Folders of format 1, each generation of which was written whole: read wholly into memory.

::

    index-7.faiss            the vectors, a flat FAISS index (vectors-7.npy in a copy of a MemoryStore)
    records-7.sqlite         ids, labels, metadata, norms
    ann-7.faiss, ann-7.npy   an approximate index, and which of its vectors is which row

What reads such a folder writes the present format with its first flush.
"""

from __future__ import annotations

import sqlite3
import struct
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._util.checks import shown
from clipretrieval._util.files import REMEDY
from clipretrieval._util.text import parse_json
from clipretrieval.errors import InvalidInputError
from clipretrieval.stores.local.folder_manifest import FolderManifest, damaged
from clipretrieval.stores.local.mapped_file import MappedFile
from clipretrieval.stores.local.rows import read_array
from clipretrieval.stores.local.segment import lengths_agree
from clipretrieval.stores.local.table import RecordTable
from clipretrieval.types import FloatArray, Metric, as_label_array

__all__ = ["read_generation"]

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
FAISS_HEAD = struct.Struct("<4siq16x?iQ")
"""Of a flat index: its kind, the dimension, the number of vectors, whether it is trained, the metric, and the
number of values."""
RESERVED = slice(16, 32)


def read_generation(
    folder: Path, manifest: FolderManifest, files: Mapping[str, MappedFile]
) -> tuple[RecordTable, FloatArray]:
    """Read the records and vectors of a generation, having verified its files.

    Raises
    ------
    StoreCorruptedError
        If they are not as they were written.
    OSError
        If they cannot be read.
    """
    for role, file in files.items():
        file.verify(manifest.files[role].sha256)
    vectors = _read_vectors(files["vectors"], manifest)
    table = _read_records(files["records"].path, manifest.count)
    wrong = lengths_agree(vectors, table.norms, manifest.metric)
    if wrong is not None:
        raise damaged(files["vectors"].path, wrong)
    return table, vectors


def _read_vectors(file: MappedFile, manifest: FolderManifest) -> FloatArray:
    """Return the vectors of a flat FAISS index, or of an array in NumPy's format."""
    count, dim, content = manifest.count, manifest.dim or 1, file.content
    if file.path.suffix == ".npy":
        vectors: FloatArray = read_array(file, "<f4", (count, dim))
        return vectors
    kind, metric = (b"IxF2", 1) if manifest.metric is Metric.L2 else (b"IxFI", 0)
    size, wanted = FAISS_HEAD.size, FAISS_HEAD.pack(kind, dim, count, True, metric, count * dim)
    # FAISS writes anything into the sixteen bytes that it does not use.
    head = content[: RESERVED.start].tobytes() + bytes(16) + content[RESERVED.stop : size].tobytes()
    if head != wanted:
        raise damaged(file.path, f"it is no flat index of {count} vectors of dimension {dim}")
    if len(content) - size != 4 * count * dim:
        raise damaged(file.path, f"it holds {len(content) - size} bytes of values, not {4 * count * dim}")
    return np.frombuffer(content[size:].tobytes(), dtype="<f4").reshape(count, dim)


def _read_records(path: Path, count: int) -> RecordTable:
    """Read a table of `count` records and check every value.

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
            raise OSError(f"SQLite could not open {path.name}: {_said(error)}") from error
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


def _said(error: Exception) -> str:
    """Return what SQLite says, which never is why it cannot open a file."""
    return f"{error}. Perhaps too many files are open: {REMEDY}" if str(error) == CANNOT_OPEN else str(error)


def _restrict(connection: sqlite3.Connection, size: int) -> None:
    """Let nothing run that a file may hold, which may be anybody's, and no value be longer than the file."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(max(size, 1000), LONGEST_VALUE))
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
