"""Where a Chroma collection lives, and how it is opened: in memory, in a folder, at a server, by a client."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import InitVar, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import chromadb
import httpx
from chromadb.api import ServerAPI
from chromadb.api.client import AdminClient, Client
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings, System
from chromadb.errors import NotFoundError
from filelock import FileLock, Timeout

from clipretrieval._util.checks import check_bool, check_int, check_path, check_text, shown
from clipretrieval._util.files import remedy
from clipretrieval._util.forks import ForkLock
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores.chroma.errors import translated
from clipretrieval.stores.chroma.folder import DATABASE_NAME, FORMAT_KEY
from clipretrieval.stores.local.writer_lock import require_plain
from clipretrieval.stores.release import Release, release_of
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
    free : callable
        Frees all of it. Must not refer to the connection, which does so when it is dropped.
    release : callable
        Frees all of it, once; does nothing in a forked process, where it is the parent's.
    anew : callable or None
        Returns another connection to the same collection; None where a forked process can have none.
    """

    client: Any
    collection: str
    where: str
    exclusive: bool
    folder: Path | None
    location: dict[str, Any] | None
    free: InitVar[Release]
    anew: Callable[[], Connection] | None = None
    release: Release = field(init=False)

    def __post_init__(self, free: Release) -> None:
        where = self.where

        def told() -> None:
            with translated(where):
                free()

        object.__setattr__(self, "release", release_of(self, told))

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
            raise StoreUnavailableError(
                f"{self.where} cannot be flushed: {error}; {remedy(error, 'check its permissions')}"
            ) from error


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


class _Own(Settings):
    """Settings that equal nobody else's: Chroma lets no client of a user's share a system of ours."""


def _settings(**more: Any) -> Settings:
    return _Own(anonymized_telemetry=False, **more)


def _systems(settings: Settings) -> list[System]:
    """Return the systems that Chroma lists under these settings."""
    listed = list(SharedSystemClient._identifier_to_system.values())
    return list({id(system): system for system in listed if system.settings is settings}.values())


def _stop(systems: list[System]) -> None:
    """Stop systems of ours, and strike them out of Chroma's list.

    `Client.close` does less: of a server's client it leaves the HTTP sessions open and a system listed. It
    also takes a lock, which the garbage collector may find held by the very thread in which it frees a store.
    """
    known, counts = SharedSystemClient._identifier_to_system, SharedSystemClient._identifier_to_refcount
    for name, system in list(known.items()):
        if any(system is each for each in systems):
            known.pop(name, None)
            counts.pop(name, None)
    for system in systems:
        for component in system._instances.values():
            session = getattr(component, "_session", None)
            if isinstance(session, httpx.Client):
                session.close()
        with suppress(AttributeError):  # of a system that could not start
            system.stop()


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


def _in_memory(collection: str) -> Connection:
    where = "Chroma's collection in memory"
    _require_threads(where)
    with translated(where):
        client, systems = _client(_settings())
    return Connection(client, collection, where, True, None, None, partial(_stop, systems))


def _client(settings: Settings) -> tuple[Any, list[System]]:
    """Return a client of a system of its own, and that.

    All clients that `chromadb.EphemeralClient` makes share one system in the process, with the settings of
    the first; `chromadb.HttpClient` leaves its connection open if the first request fails.
    """
    system = System(settings)
    try:
        return _client_of(system), [system]
    except BaseException:
        _stop([system])
        raise


def _client_of(system: System) -> Any:
    server: Any = system.instance(ServerAPI)  # type: ignore[type-abstract]  # as Chroma asks for it
    system.start()
    client, admin = Client.__new__(Client), AdminClient.__new__(AdminClient)
    for each in (client, admin):  # what their constructors do, which list the system under a name
        each._identifier, each._server = "clipretrieval", server
    client._admin_client = admin
    return client


def _in_folder(path: str | Path, collection: str, create: bool) -> Connection:
    # Chroma tells its systems apart by the spelling of their paths.
    folder = check_path(path, "path").resolve()
    check_text(str(folder), "the path of a Chroma folder")  # Chroma takes no other bytes than UTF-8
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
            client, systems = _persistent_client(str(folder))
        undo.pop_all()

    def free() -> None:
        try:
            _stop(systems)
        finally:
            lock.release()

    location = {"path": str(folder), "collection": collection}
    return Connection(client, collection, where, True, folder, location, free)


def _persistent_client(folder: str) -> tuple[Any, list[System]]:
    # The lock keeps other stores out, so any system of this process that is there is somebody's own client.
    for system in list(SharedSystemClient._identifier_to_system.values()):
        held = system.settings
        if held.is_persistent and os.path.realpath(held.persist_directory) == folder:
            raise StoreLockedError(
                f"a Chroma client of this process holds the folder {folder}. Close it first, or hand it "
                "over as client="
            )
    settings = _settings()
    try:
        return chromadb.PersistentClient(path=folder, settings=settings), _systems(settings)
    except BaseException:
        # Chroma keeps a system that failed to start, and gives it out again, broken.
        _stop(_systems(settings))
        raise


def _at_server(host: str, port: int, ssl: bool, collection: str) -> Connection:
    if not isinstance(host, str) or not re.fullmatch(HOST, host):
        raise InvalidInputError(
            f"host must be a name or an address, without scheme, path or credentials; got {shown(host)}. "
            "For anything else, give a client of your own as client="
        )
    port = check_int(port, "port", most=65535)
    where = f"collection {collection!r} of the Chroma server at {host}:{port}"
    # Without the environment's credentials, which are for a server that its owner chose: see client=.
    settings = _settings(
        chroma_api_impl="chromadb.api.fastapi.FastAPI",
        chroma_server_host=host,
        chroma_server_http_port=port,
        chroma_server_ssl_enabled=ssl,
        chroma_client_auth_provider=None,
        chroma_client_auth_credentials=None,
    )
    with translated(where):
        client, systems = _client(settings)

    def anew() -> Connection:
        return _at_server(host, port, ssl, collection)

    location = {"host": host, "port": port, "ssl": ssl, "collection": collection}
    return Connection(client, collection, where, False, None, location, partial(_stop, systems), anew)


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
            f"the Chroma folder {folder} cannot be locked: {error}; {remedy(error, 'check its permissions')}"
        ) from error
    return lock
