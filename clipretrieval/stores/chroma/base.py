"""What a ChromaStore is beside its records: where it is, and until when it is open."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipretrieval._util.forks import ForkLock
from clipretrieval._util.repr import safe_repr
from clipretrieval.errors import StoreError, UnsupportedOperationError
from clipretrieval.stores.chroma.client import Connection, open_collection
from clipretrieval.stores.chroma.folder import holds_collection
from clipretrieval.stores.chroma.records import ChromaRecords
from clipretrieval.stores.chroma.search import ChromaSearch
from clipretrieval.stores.context import ClosedAtExit
from clipretrieval.stores.local.locks import ReadWriteLock
from clipretrieval.types import Metric

__all__ = ["DEFAULT_COLLECTION", "ChromaBase"]

DEFAULT_COLLECTION = "clipretrieval"


class ChromaBase(ClosedAtExit):
    """Tells where the connection leads, and closes it; the constructor of `ChromaStore` opens it."""

    _metric: Metric
    _dim: int | None
    _exact: bool
    _exact_up_to: int | None
    _lock: ReadWriteLock
    _closed: bool
    # Whether the connection is that of the process that this one was forked from.
    _inherited: bool
    _reconnecting: ForkLock
    _connection: Connection
    _records: ChromaRecords
    _search: ChromaSearch

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._metric

    @property
    def dim(self) -> int | None:
        """The vectors' dimension; None until the first upsert."""
        return self._dim

    def flush(self) -> None:
        """Return when everything written so far is on the device, if it is in a folder.

        Chroma commits every request before it answers: what a call wrote that returned outlives this process,
        and the server's where there is one. In a folder, a flush also makes the end of the last commit, the
        removal of SQLite's journal, outlast a loss of power; at a server that is the server's to do.

        Raises
        ------
        StoreUnavailableError
            If the system cannot.
        """
        with self._lock.write():
            self._require_open()
            self._connection.sync()

    def close(self) -> None:
        """Flush and free what the store holds; calling it again does nothing."""
        with self._lock.write():
            if self._closed:
                return
            self._closed = True
            self._search.forget()
            if self._inherited:
                return
            try:
                self._connection.sync()
            finally:
                self._connection.release()

    def location(self) -> dict[str, Any] | None:
        """Return the options that open the same collection elsewhere; None in memory or with a client."""
        place = self._connection.location
        if place is None:
            return None
        bound = {} if self._exact_up_to is None else {"exact_up_to": self._exact_up_to}
        return {**place, "metric": str(self._metric), "exact": self._exact, **bound}

    @classmethod
    def exists_locally(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether a store with these options would only open a collection; see `LocalFilesStore`."""
        path, name = options.get("path"), options.get("collection", DEFAULT_COLLECTION)
        known = {"path", "collection", "metric", "exact", "exact_up_to"}
        return isinstance(path, str) and set(options) <= known and holds_collection(Path(path), name)

    @safe_repr
    def __repr__(self) -> str:
        state = "closed" if self._closed else self._connection.where
        return f"ChromaStore(metric={str(self._metric)!r}, dim={self._dim}, {state})"

    def __reduce__(self) -> Any:
        again = "open it elsewhere with ChromaStore(**store.location())"
        if self._connection.location is None and self._connection.exclusive:
            again = "to have an empty one for each process, pass it by name, store='chroma'"
        elif self._connection.location is None:
            again = "open it elsewhere with a client that is made there"
        raise UnsupportedOperationError(f"{self!r} cannot be pickled or copied; {again}")

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("this ChromaStore is closed; open it anew")
        if self._inherited:
            with self._reconnecting.current:
                if self._inherited:
                    self._attach(self._connection.in_forked_process(), create=False)

    def _attach(self, connection: Connection, create: bool) -> None:
        """Open the collection and use the connection from now on; where that fails, release it."""
        try:
            collection = open_collection(connection, self._metric, create)
            records = ChromaRecords(connection, collection, self._metric)
            dim = records.dim()
        except BaseException:
            with suppress(StoreError):  # the first failure says more
                connection.release()
            raise
        self._connection, self._records, self._dim = connection, records, dim
        self._search = ChromaSearch(
            records, self._metric, connection.exclusive, self._exact, self._exact_up_to
        )
        self._inherited = False

    def _after_fork(self) -> None:
        """Leave the connection to the parent: an answer to one process could be read by the other."""
        self._lock = ReadWriteLock()
        if not self._closed:
            self._inherited = True
            self._connection.leave_to_parent()
