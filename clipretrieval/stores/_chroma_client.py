"""Where a Chroma collection lives, and how it is opened: in memory, in a folder, at a server, by a client."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import chromadb
import httpx
from chromadb.api import ServerAPI
from chromadb.api.client import AdminClient, Client
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings, System
from chromadb.errors import NotFoundError
from filelock import FileLock, Timeout

from clipretrieval._checks import check_bool, check_int, check_path, shown
from clipretrieval._forks import ForkLock, in_this_process
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores._chroma_errors import translated
from clipretrieval.stores._chroma_folder import DATABASE_NAME, FORMAT_KEY
from clipretrieval.stores._writer import require_plain
from clipretrieval.types import Metric

__all__ = ["MANIFEST_KEY", "Connection", "connect", "open_collection"]

MANIFEST_KEY = "clipretrieval:manifest"
FORMAT_VERSION = 1
LOCK_NAME = "clipretrieval.lock"
DEFAULT_PORT = 8000
HOST = r"[^/@?#\s\x00-\x20\x7f\ud800-\udfff]{1,253}"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,470}[a-zA-Z0-9]")

# A graph denser than Chroma's default (100, 16): that one lost sight of a sixth of 3,000 rows with many equal
# vectors, this one of none.
GRAPH = {"ef_construction": 200, "max_neighbors": 32, "ef_search": 200}
# Chroma then never writes its index files, which a killed process leaves torn; SQLite's log holds everything.
NEVER = 10**9

# Chroma makes the system that clients share without a lock of its own.
_making = ForkLock()
_threads_of: int | None = None
"""The process that has the threads of a Chroma outside of servers; None while no store has begun one."""
FORKED = (
    "a process that this one was forked from used Chroma, whose threads stayed behind: here it would wait "
    'for them for ever. Start this process by the method "spawn" or "forkserver" of multiprocessing, use '
    "FaissStore or MemoryStore, or run `chroma run` on a folder and open it with host= and port="
)


@dataclass(frozen=True, eq=False)
class Connection:
    """A client and what there is to know about it.

    Attributes
    ----------
    client : chromadb client
    collection : str
        The collection's name.
    where : str
        The collection in words, for messages.
    exclusive : bool
        Whether no other store or program may change the collection.
    folder : Path or None
    location : dict or None
        The options that open the same place elsewhere.
    release : callable
        Frees all of it; does nothing in a forked process, where it is the parent's.
    anew : callable or None
        Returns another connection to the same collection; None where a forked process can have none.
    """

    client: Any
    collection: str
    where: str
    exclusive: bool
    folder: Path | None
    location: dict[str, Any] | None
    release: Callable[[], None]
    anew: Callable[[], Connection] | None = None

    def leave_to_parent(self) -> None:
        """Do no harm, in a forked process, to what its parent goes on using."""
        bindings = _bindings(self.client)
        if bindings is not None:
            # Freed, at the latest when this process ends, they would wait for threads that it does not have.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(bindings))

    def in_forked_process(self) -> Connection:
        """Return another connection, for a process that was forked from the one that made this.

        Raises
        ------
        UnsupportedOperationError
            If there can be none: the client is the caller's, or Chroma itself was in that process.
        StoreUnavailableError
            If the server cannot be reached.
        """
        if self.anew is not None:
            return self.anew()
        if self.exclusive or _bindings(self.client) is not None:
            raise UnsupportedOperationError(f"{self.where} cannot be used: {FORKED}")
        raise UnsupportedOperationError(
            f"{self.where} cannot be used: its connection is that of the process that this one was forked "
            "from. Make a client in this process, and open a ChromaStore with it"
        )

    def sync(self) -> None:
        """Have the system put a folder's database on the device, where SQLite has committed to it.

        To close a file drops this process's locks on it: no request may be under way.
        """
        if self.folder is None:
            return
        try:
            for path in (self.folder / DATABASE_NAME, self.folder):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise StoreUnavailableError(f"{self.where} cannot be flushed: {error}") from error


def connect(
    path: str | Path | None,
    host: str | None,
    port: int | None,
    ssl: bool,
    client: Any,
    collection: str,
    create: bool,
) -> Connection:
    """Reach Chroma where the options say.

    Raises
    ------
    InvalidInputError
        If the options contradict each other or a name is malformed.
    StoreError
        If Chroma cannot be reached, another writer holds the folder, or there is none and none may be made.
    """
    if not isinstance(collection, str) or not NAME.fullmatch(collection):
        raise InvalidInputError(
            "collection must be 3 to 472 of the characters a-z, A-Z, 0-9, '.', '_' and '-', with a letter or "
            f"digit at both ends; found {shown(collection)}"
        )
    given = [
        name for name, value in (("path", path), ("host", host), ("client", client)) if value is not None
    ]
    if len(given) > 1:
        raise InvalidInputError(f"give one of path, host and client; found {' and '.join(given)}")
    ssl = check_bool(ssl, "ssl")
    if client is not None and not all(
        callable(getattr(client, name, None)) for name in ("get_collection", "get_or_create_collection")
    ):
        raise InvalidInputError(
            f"client must be a Chroma client, such as chromadb.HttpClient(…); got an object of the type "
            f"{type(client).__name__}"
        )
    if host is None and (port is not None or ssl):
        raise InvalidInputError("port and ssl need a host")
    if not given and not create:
        raise InvalidInputError(
            "create=False needs a path, a host or a client; in memory nothing is there yet"
        )
    if client is not None:
        where = f"collection {collection!r} of the given Chroma client"
        if _bindings(client) is not None:
            _require_threads(where)
        return Connection(client, collection, where, False, None, None, lambda: None)
    if host is not None:
        return _at_server(host, DEFAULT_PORT if port is None else port, ssl, collection)
    return _in_memory(collection) if path is None else _in_folder(path, collection, create)


def open_collection(connection: Connection, metric: Metric, create: bool) -> Any:
    """Return the collection, made if it is not there and may be made.

    Raises
    ------
    FingerprintMismatchError
        If it is there with another metric.
    InvalidInputError
        If it is there and no `ChromaStore` made it.
    StoreUnavailableError
        If it is not there and may not be made.
    """
    name = connection.collection
    with translated(connection.where):
        try:
            found = connection.client.get_collection(name, embedding_function=None)
        except NotFoundError as error:
            if not create:
                raise StoreUnavailableError(
                    f"there is no {connection.where}; check the names, or leave out create=False to make it"
                ) from error
            graph: dict[str, Any] = {"space": str(metric), **GRAPH}
            if connection.folder is not None or not connection.exclusive:
                graph["sync_threshold"] = NEVER
            found = connection.client.get_or_create_collection(
                name,
                configuration={"hnsw": graph},
                metadata={FORMAT_KEY: FORMAT_VERSION},
                embedding_function=None,
            )
    version = (found.metadata or {}).get(FORMAT_KEY)
    if version is None:
        raise InvalidInputError(
            f"{connection.where} was not made by ChromaStore; give another name as collection="
        )
    if version != FORMAT_VERSION:
        raise StoreCorruptedError(
            f"{connection.where} is of format version {version!r}; this version of clipretrieval reads "
            f"version {FORMAT_VERSION}. Install one that reads version {version!r}"
        )
    # Chroma passes silently over a configuration that differs from the one at creation.
    settings = found.configuration_json
    space = (settings.get("hnsw") or settings.get("spann") or {}).get("space")
    if space != str(metric):
        raise FingerprintMismatchError(
            f"{connection.where} was made with metric {space!r}; found metric={str(metric)!r}. "
            f"Open it with metric={space!r}, or give another collection"
        )
    return found


def _bindings(client: Any) -> Any:
    """Return what a client has of Chroma itself; None where that is at a server."""
    return getattr(getattr(client, "_server", None), "bindings", None)


def _require_threads(where: str) -> None:
    """Refuse a Chroma in a forked process: one pool of threads serves a process, and none replaces it."""
    global _threads_of
    if _threads_of is None:
        _threads_of = os.getpid()
    if _threads_of != os.getpid():
        raise UnsupportedOperationError(f"{where} cannot be opened: {FORKED}")


def _settings() -> Any:
    return Settings(anonymized_telemetry=False)


def _in_memory(collection: str) -> Connection:
    where = "Chroma's collection in memory"
    _require_threads(where)
    with translated(where), _making.current:
        client = _own_client()

    def release() -> None:
        with translated(where), _making.current:
            client.close()

    return Connection(client, collection, where, True, None, None, in_this_process(release))


def _own_client() -> Any:
    """Return a client of a system in memory that is its alone.

    All that `chromadb.EphemeralClient` makes share one system in the process, with the settings of the first.
    """
    system = System(_settings())
    own = f"clipretrieval-{uuid4().hex}"
    server: Any = system.instance(ServerAPI)  # type: ignore[type-abstract]  # as Chroma asks for it
    system.start()
    SharedSystemClient._identifier_to_system[own] = system
    client, admin = Client.__new__(Client), AdminClient.__new__(AdminClient)
    for each in (client, admin):  # what their constructors do, which give the system its name
        each._identifier, each._server = own, server
        SharedSystemClient._increment_refcount(own)
    client._admin_client = admin
    return client


def _in_folder(path: str | Path, collection: str, create: bool) -> Connection:
    # Chroma tells its systems apart by the spelling of their paths.
    folder = check_path(path, "path").resolve()
    where = f"collection {collection!r} of the Chroma folder {folder}"
    _require_threads(where)
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder} is a file; ChromaStore needs a folder, or a path that is free")
    if not create and not (folder / DATABASE_NAME).is_file():
        raise StoreUnavailableError(
            f"there is no Chroma database in {folder}; check the path, or leave out create=False to make one"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(f"the folder {folder} cannot be made: {error}") from error
    with ExitStack() as undo:
        lock = _locked(folder)
        undo.callback(lock.release)
        with translated(where), _making.current:
            client = _persistent_client(str(folder))
        undo.pop_all()

    def release() -> None:
        try:
            with translated(where), _making.current:
                client.close()
        finally:
            lock.release()

    location = {"path": str(folder), "collection": collection}
    return Connection(client, collection, where, True, folder, location, in_this_process(release))


def _persistent_client(folder: str) -> Any:
    known = SharedSystemClient._identifier_to_system
    # The lock keeps other stores out, so any system of this process that is there is somebody's own client.
    for system in list(known.values()):
        settings = system.settings
        if settings.is_persistent and os.path.realpath(settings.persist_directory) == folder:
            raise StoreLockedError(
                f"a Chroma client of this process holds the folder {folder}. Close it first, or hand it "
                "over as client="
            )
    try:
        return chromadb.PersistentClient(path=folder, settings=_settings())
    except BaseException:
        # Chroma keeps a system that failed to start, and gives it out again, broken.
        known.pop(folder, None)
        raise


def _at_server(host: str, port: int, ssl: bool, collection: str) -> Connection:
    if not isinstance(host, str) or not re.fullmatch(HOST, host):
        raise InvalidInputError(
            f"host must be a name or an address, without scheme, path or credentials; got {shown(host)}. "
            "For anything else, give a client of your own as client="
        )
    port = check_int(port, "port", most=65535)
    where = f"collection {collection!r} of the Chroma server at {host}:{port}"
    with translated(where), _making.current:
        # Without the environment's credentials, which are for a server that its owner chose: see client=.
        settings = Settings(
            anonymized_telemetry=False,
            chroma_client_auth_provider=None,
            chroma_client_auth_credentials=None,
        )
        client: Any = chromadb.HttpClient(host=host, port=port, ssl=ssl, settings=settings)

    def release() -> None:
        with translated(where), _making.current:
            client.close()
            _close_sockets(client)

    def anew() -> Connection:
        return _at_server(host, port, ssl, collection)

    location = {"host": host, "port": port, "ssl": ssl, "collection": collection}
    return Connection(client, collection, where, False, None, location, in_this_process(release), anew)


def _close_sockets(client: Any) -> None:
    """Close the HTTP sessions of a client and of the one inside it, which Chroma leaves open."""
    for each in (client, getattr(client, "_admin_client", None)):
        session = getattr(getattr(each, "_server", None), "_session", None)
        if isinstance(session, httpx.Client):
            session.close()


def _locked(folder: Path) -> FileLock:
    """Take the folder's lock at once or not at all; the system frees it when the process ends."""
    lock = FileLock(folder / LOCK_NAME, timeout=0, thread_local=False)
    try:
        require_plain(folder / LOCK_NAME)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise StoreLockedError(
            f"another store holds the Chroma folder {folder}. Chroma lets one process use a folder: close it "
            "there first, or run `chroma run` on the folder and open it with host= and port="
        ) from error
    except (OSError, NotImplementedError) as error:
        raise StoreUnavailableError(
            f"the Chroma folder {folder} cannot be locked: {error}; check its permissions"
        ) from error
    return lock
