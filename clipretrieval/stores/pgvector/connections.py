"""The connections of one store: as many as threads use at once, made anew where a server went away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from clipretrieval._util.forks import renew_after_fork
from clipretrieval.errors import StoreUnavailableError
from clipretrieval.stores.pgvector.server import Server

__all__ = ["Connections"]

KEPT = 8
"""Idle connections that are kept open."""

Connection = psycopg.Connection[Any]
Result = TypeVar("Result")

_inherited: list[Connection] = []
"""Connections of the process that this one was forked from: closing one would end it there."""


class Connections:
    """Lends connections to a database to one thread at a time.

    Parameters
    ----------
    server : Server
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._idle: list[Connection] = []
        self._own = threading.local()
        self._closed = False
        renew_after_fork(self)

    def run(self, work: Callable[[Connection], Result], *, atomic: bool = True) -> Result:
        """Do some work in one transaction, once more if a connection was dead before anything was committed.

        Parameters
        ----------
        work : callable
        atomic : bool
            False for what is one statement that only reads.

        Raises
        ------
        StoreError
            If the server fails.
        """
        held = getattr(self._own, "connection", None)
        if held is not None:
            with self._server.translated():
                return work(held)
        for again in (True, False):
            connection, committing = self._lent(), False
            try:
                with self._server.translated(), connection.transaction() if atomic else nullcontext():
                    result = work(connection)
                    committing = True
            except StoreUnavailableError:
                if committing or not again or not connection.broken:
                    raise
                self._close_idle()  # a server that ended has ended all of them
            else:
                return result
            finally:
                self._give_back(connection)
        raise AssertionError("unreachable")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run all that this thread does in the block in one transaction."""
        if getattr(self._own, "connection", None) is not None:
            yield
            return
        connection = self._lent()
        try:
            connection.execute("SELECT 1")
        except psycopg.Error:  # the server has ended it since it was last used, and all others
            connection.close()
            self._close_idle()
            connection = self._server.connect()
        self._own.connection = connection
        try:
            with self._server.translated(), connection.transaction():
                yield
        finally:
            self._own.connection = None
            self._give_back(connection)

    def close(self) -> None:
        """Close what is idle now, and what is given back later."""
        self._closed = True
        self._close_idle()

    def _lent(self) -> Connection:
        with suppress(IndexError):  # which another thread may have emptied
            return self._idle.pop()
        return self._server.connect()

    def _give_back(self, connection: Connection) -> None:
        whole = connection.info.transaction_status == TransactionStatus.IDLE
        if whole and not self._closed and len(self._idle) < KEPT:
            self._idle.append(connection)
        else:
            connection.close()

    def _close_idle(self) -> None:
        while self._idle:
            with suppress(psycopg.Error, IndexError):
                self._idle.pop().close()

    def _after_fork(self) -> None:
        """Leave the connections to the parent: an answer to one process could be read by the other."""
        _inherited.extend(self._idle)
        _inherited.extend(each for each in [getattr(self._own, "connection", None)] if each is not None)
        self._idle, self._own = [], threading.local()
