"""What lies in a Chroma folder, looked up without Chroma, which would make what is missing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

__all__ = ["DATABASE_NAME", "FORMAT_KEY", "holds_collection"]

DATABASE_NAME = "chroma.sqlite3"
FORMAT_KEY = "clipretrieval:format"
# A look-up takes some hundreds of SQLite's steps; a stranger's endless view would never end.
MOST_STEPS = 1_000_000
_TABLES = (
    "SELECT COUNT(*) FROM sqlite_master "
    "WHERE type = 'table' AND name IN ('collections', 'collection_metadata')"
)
_COLLECTION = (
    "SELECT 1 FROM collections "
    "JOIN collection_metadata ON collection_metadata.collection_id = collections.id "
    "WHERE collections.name = ? AND collection_metadata.key = ? LIMIT 1"
)


def holds_collection(folder: Path, name: object) -> bool:
    """Tell whether a folder has a collection that a `ChromaStore` made; nothing is made or changed."""
    database = folder / DATABASE_NAME
    if not isinstance(name, str) or not database.is_file():
        return False
    # A hot journal, which a killed writer leaves, is for the next one to roll back; a look passes it over.
    for mode in ("mode=ro", "immutable=1"):
        try:
            return _look_up(f"{database.absolute().as_uri()}?{mode}", name)
        except sqlite3.OperationalError:
            continue
        except (sqlite3.Error, ValueError):  # not a database, or no path for one
            return False
    return False


def _look_up(address: str, name: str) -> bool:
    with closing(sqlite3.connect(address, uri=True, timeout=0)) as connection:
        connection.set_progress_handler(lambda: 1, MOST_STEPS)
        connection.execute("PRAGMA trusted_schema = OFF")
        if connection.execute(_TABLES).fetchone() != (2,):
            return False
        return connection.execute(_COLLECTION, (name, FORMAT_KEY)).fetchone() is not None
