"""What ChromaStore uses of chromadb beyond its documented interface, and why it must.

======================================================  ==================================================
`SharedSystemClient._identifier_to_system`              Only here does Chroma tell who holds a folder.
`System`, `ServerAPI`, `Collection`                     Public, yet undocumented: a Chroma of one store alone.
`ServerAPI._modify`                                     `Collection.modify` warns about what we do not use.
`FastAPI._session`                                      Nothing else closes the connections to a server.
`Client._server`, `RustBindingsAPI.bindings`            Whether a client has a Chroma in this process.
The tables `collections` and `collection_metadata`      A look into a folder must not make what is missing.
Other tables, and the files of the index                See `index.py`: nothing else tells a torn index.
======================================================  ==================================================
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
from chromadb.api import ServerAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, Settings, System

from clipretrieval.errors import StoreLockedError

__all__ = ["DATABASE_NAME", "OwnClient", "bindings_of", "holds_collection"]

DATABASE_NAME = "chroma.sqlite3"

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


class OwnSettings(Settings):
    """Settings that equal nobody else's: Chroma lets no client of a user's share a system of ours."""


class OwnClient:
    """A client of a Chroma that is one store's alone, with those of a client's methods that a store calls.

    The clients that `chromadb.EphemeralClient` makes share one system in the process, with the settings of
    the first. Chroma keeps a system whose folder it could not open, and gives it out again, broken. A
    client's `close` leaves the connections to a server open, as the constructor of `chromadb.HttpClient` does
    where the first request fails, and it takes a lock, which the garbage collector may find held by the very
    thread in which it frees a store.

    Parameters
    ----------
    folder : str, optional
        Where Chroma keeps its files; None in memory or at a server.
    **settings
        Further settings of Chroma's.

    Raises
    ------
    StoreLockedError
        If another Chroma client of this process holds the folder.
    """

    def __init__(self, folder: str | None = None, **settings: Any) -> None:
        if folder is not None:
            _require_unheld(folder)
            settings.update(is_persistent=True, persist_directory=folder)
        self._folder = folder
        self._server: Any = None
        self._system = System(OwnSettings(anonymized_telemetry=False, **settings))
        try:
            if folder is not None:  # Chroma then refuses the folder to clients of the user's
                SharedSystemClient._identifier_to_system[folder] = self._system
            self._server = self._system.instance(ServerAPI)  # type: ignore[type-abstract]  # as Chroma asks for it
            self._system.start()
            if folder is not None:  # a folder may lack them, as a client's constructor sees too
                self._server.get_tenant(DEFAULT_TENANT)
                self._server.get_database(DEFAULT_DATABASE)
        except BaseException:
            self.close()
            raise

    def get_collection(self, name: str, embedding_function: None = None) -> Collection:
        """Return a collection that is there."""
        return Collection(self._server, self._server.get_collection(name), embedding_function)

    def get_or_create_collection(
        self,
        name: str,
        *,
        configuration: dict[str, Any],
        metadata: dict[str, Any],
        embedding_function: None,
    ) -> Collection:
        """Return a collection, made if it is not there."""
        model = self._server.get_or_create_collection(name, configuration=configuration, metadata=metadata)
        return Collection(self._server, model, embedding_function)

    def delete_collection(self, name: str) -> None:
        """Delete a collection that is there."""
        self._server.delete_collection(name)

    def set_sync_threshold(self, collection: Collection, records: int) -> None:
        """Set after how many records Chroma writes the collection's index, from the next time it loads it."""
        # Its `modify` also reads the configuration anew, and warns that it names no embedding function.
        self._server._modify(id=collection.id, new_configuration={"hnsw": {"sync_threshold": records}})

    def get_max_batch_size(self) -> int:
        """Return how many records one request may write."""
        return int(self._server.get_max_batch_size())

    def close(self) -> None:
        """Stop the system and close its connections, without taking a lock."""
        systems = SharedSystemClient._identifier_to_system
        if self._folder is not None and systems.get(self._folder) is self._system:
            systems.pop(self._folder, None)
        session = getattr(self._server, "_session", None)  # of FastAPI, whose `stop` leaves it open
        if isinstance(session, httpx.Client):
            session.close()
        with suppress(AttributeError):  # of a system that could not start
            self._system.stop()


def _require_unheld(folder: str) -> None:
    """Refuse a folder of a client of the user's: other stores are kept out by their lock."""
    for system in list(SharedSystemClient._identifier_to_system.values()):
        held = system.settings
        if held.is_persistent and os.path.realpath(held.persist_directory) == folder:
            raise StoreLockedError(
                f"a Chroma client of this process holds the folder {folder}. Close it first, or hand it "
                "over as client="
            )


def bindings_of(client: Any) -> Any:
    """Return the Chroma that a client has in this process; None where it is at a server."""
    return getattr(getattr(client, "_server", None), "bindings", None)


def holds_collection(folder: Path, name: object, key: str) -> bool:
    """Tell whether a folder has a collection with a key in its metadata; nothing is made or changed."""
    database = folder / DATABASE_NAME
    if not isinstance(name, str) or not database.is_file():
        return False
    # A hot journal, which a killed writer leaves, is for the next one to roll back; a look passes it over.
    for mode in ("mode=ro", "immutable=1"):
        try:
            return _look_up(f"{database.absolute().as_uri()}?{mode}", name, key)
        except sqlite3.OperationalError:
            continue
        except (sqlite3.Error, ValueError):  # not a database, or no path for one
            return False
    return False


def _look_up(address: str, name: str, key: str) -> bool:
    with closing(sqlite3.connect(address, uri=True, timeout=0)) as connection:
        connection.set_progress_handler(lambda: 1, MOST_STEPS)
        connection.execute("PRAGMA trusted_schema = OFF")
        if connection.execute(_TABLES).fetchone() != (2,):
            return False
        return connection.execute(_COLLECTION, (name, key)).fetchone() is not None
