"""Where a Chroma collection lives: in memory, in a folder, at a server, or where a user's client leads."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clipretrieval._util.checks import check_bool, check_int, check_path, check_text, shown
from clipretrieval._util.files import remedy
from clipretrieval._util.forks import LibraryThreads
from clipretrieval.errors import (
    InvalidInputError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores.chroma.errors import translated
from clipretrieval.stores.chroma.internals import DATABASE_NAME, OwnClient, bindings_of
from clipretrieval.stores.local.writer_lock import require_plain
from clipretrieval.stores.release import Release, release_of

__all__ = ["Connection", "connect"]

LOCK_NAME = "clipretrieval.lock"
DEFAULT_PORT = 8000
HOST = r"[^/@?#\s\x00-\x20\x7f\ud800-\udfff]{1,253}"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,470}[a-zA-Z0-9]")

_threads = LibraryThreads()
"""Those of a Chroma outside of servers."""
FORKED = (
    "a process that this one was forked from used Chroma, whose threads stayed behind: here it would wait "
    'for them for ever. Start this process by the method "spawn" or "forkserver" of multiprocessing, use '
    "FaissStore or MemoryStore, or run `chroma run` on a folder and open it with host= and port="
)


class Connection:
    """A client, the collection that a store asks it for, and what there is to know about both.

    Parameters
    ----------
    client : chromadb client
    collection : str
        The collection's name.
    where : str
        The collection in words, for messages.
    free : callable
        Frees all of it. Must not refer to the connection, which does so when it is dropped.
    exclusive : bool
        Whether no other store or program may change the collection.
    folder : Path or None
    location : dict or None
        The options that open the same place elsewhere.
    reconnect : callable or None
        Returns another connection to the same collection; None where a forked process can have none.

    Attributes
    ----------
    release : callable
        Frees all of it, once; does nothing in a forked process, where it is the parent's.
    """

    def __init__(
        self,
        client: Any,
        collection: str,
        where: str,
        free: Release,
        *,
        exclusive: bool = False,
        folder: Path | None = None,
        location: dict[str, Any] | None = None,
        reconnect: Callable[[], Connection] | None = None,
    ) -> None:
        def free_translated() -> None:
            with translated(where):
                free()

        self.client, self.collection, self.where = client, collection, where
        self.exclusive, self.folder, self.location = exclusive, folder, location
        self.release = release_of(self, free_translated)
        self._reconnect = reconnect

    def in_forked_process(self) -> Connection:
        """Return another connection, for a process that was forked from the one that made this.

        Raises
        ------
        UnsupportedOperationError
            If there can be none: the client is the caller's, or Chroma itself was in that process.
        StoreUnavailableError
            If the server cannot be reached.
        """
        if self._reconnect is not None:
            return self._reconnect()
        if self.exclusive or bindings_of(self.client) is not None:
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
        return _through_client(client, collection)
    if host is not None:
        return _at_server(host, DEFAULT_PORT if port is None else port, ssl, collection)
    return _in_memory(collection) if path is None else _in_folder(path, collection, create)


def _through_client(client: Any, collection: str) -> Connection:
    where = f"collection {collection!r} of the given Chroma client"
    bindings = bindings_of(client)
    if bindings is not None:
        _require_own_threads(where)
    return Connection(client, collection, where, partial(_leave_open, bindings))


def _leave_open(bindings: Any) -> None:
    """Free nothing of a caller's client.

    A forked process holds for ever what frees a connection of its parent, and thereby these bindings: freed,
    at the latest when that process ends, they would wait for threads that it does not have.
    """


def _in_memory(collection: str) -> Connection:
    where = "Chroma's collection in memory"
    _require_own_threads(where)
    with translated(where):
        client = OwnClient()
    return Connection(client, collection, where, client.close, exclusive=True)


def _in_folder(path: str | Path, collection: str, create: bool) -> Connection:
    # Chroma tells its systems apart by the spelling of their paths.
    folder = check_path(path, "path").resolve()
    check_text(str(folder), "the path of a Chroma folder")  # Chroma takes no other bytes than UTF-8
    where = f"collection {collection!r} of the Chroma folder {folder}"
    _require_own_threads(where)
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
    lock = _locked(folder)
    try:
        with translated(where):
            client = OwnClient(str(folder))
    except BaseException:
        lock.release()
        raise

    def free() -> None:
        try:
            client.close()
        finally:
            lock.release()

    location = {"path": str(folder), "collection": collection}
    return Connection(client, collection, where, free, exclusive=True, folder=folder, location=location)


def _at_server(host: str, port: int, ssl: bool, collection: str) -> Connection:
    if not isinstance(host, str) or not re.fullmatch(HOST, host):
        raise InvalidInputError(
            f"host must be a name or an address, without scheme, path or credentials; got {shown(host)}. "
            "For anything else, give a client of your own as client="
        )
    port = check_int(port, "port", most=65535)
    where = f"collection {collection!r} of the Chroma server at {host}:{port}"
    with translated(where):
        client = OwnClient(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host=host,
            chroma_server_http_port=port,
            chroma_server_ssl_enabled=ssl,
            # Without the environment's, which are for a server that its owner chose: see client=.
            chroma_client_auth_provider=None,
            chroma_client_auth_credentials=None,
        )
    location = {"host": host, "port": port, "ssl": ssl, "collection": collection}
    reconnect = partial(_at_server, host, port, ssl, collection)
    return Connection(client, collection, where, client.close, location=location, reconnect=reconnect)


def _require_own_threads(where: str) -> None:
    """Refuse a Chroma in a forked process: one pool of threads serves a process, and none replaces it."""
    if not _threads.are_here():
        raise UnsupportedOperationError(f"{where} cannot be opened: {FORKED}")


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
