"""The connections of one store: as many as threads use at once, made anew where a server went away."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from clipretrieval._util.forks import renew_after_fork
from clipretrieval.stores.pgvector.server import Server

__all__ = ["Connections"]

KEPT = 8
"""Idle connections that are kept open."""

Connection = psycopg.Connection[Any]
Result = TypeVar("Result")

_inherited: list[list[Connection]] = []
"""Connections of the process that this one was forked from, which are not to be closed here."""


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

    @property
    def in_block(self) -> bool:
        """Whether this thread is in a transaction."""
        return self._held() is not None

    def run(self, work: Callable[[Connection], Result], *, reading: bool = False) -> Result:
        """Do some work in one transaction, or in a part of this thread's own that can fail alone.

        Parameters
        ----------
        work : callable
        reading : bool
            Nothing is written, and all statements see the database at one moment.

        Raises
        ------
        StoreError
            If the server fails.
        """
        with self.together(reading=reading) as connection:
            return work(connection)

    @contextmanager
    def together(self, *, reading: bool = False) -> Iterator[Connection]:
        """Run all that this thread does in the block in one transaction."""
        owner, held = os.getpid(), self._held()
        with ExitStack() as ending:
            ending.enter_context(self._server.translated())
            if held is None:
                connection, transaction = self._begun(reading)
                self._own.connection = connection
                ending.callback(self._give_back, connection, owner)
            else:
                connection, transaction = held, psycopg.Transaction(held)
                transaction.__enter__()
            # A process that was forked in the block is to leave the transaction to its parent.
            ending.push(lambda *raised: os.getpid() == owner and transaction.__exit__(*raised))
            yield connection
            if os.getpid() == owner and connection.closed:  # which psycopg lets pass
                raise psycopg.OperationalError("the connection broke before the end of the transaction")

    def close(self) -> None:
        """Close what is idle now, and what is given back later."""
        self._closed = True
        while self._idle:
            with suppress(psycopg.Error, IndexError):
                self._idle.pop().close()

    def _held(self) -> Connection | None:
        return getattr(self._own, "connection", None)

    def _begun(self, reading: bool) -> tuple[Connection, psycopg.Transaction]:
        """Return a connection and its new transaction; one that the server has ended cannot begin any."""
        while True:
            kept: Connection | None = None
            with suppress(IndexError):  # which another thread may have emptied
                kept = self._idle.pop()
            connection = kept or self._server.connect()
            try:
                connection.isolation_level = (
                    IsolationLevel.REPEATABLE_READ if reading else IsolationLevel.READ_COMMITTED
                )
                connection.read_only = reading or None
                transaction = psycopg.Transaction(connection)
                transaction.__enter__()
            except BaseException as error:
                connection.close()
                if kept is None or not isinstance(error, psycopg.Error):
                    raise
            else:
                return connection, transaction

    def _give_back(self, connection: Connection, owner: int) -> None:
        if os.getpid() != owner:
            return
        self._own.connection = None
        whole = connection.info.transaction_status == TransactionStatus.IDLE
        if whole and not self._closed and len(self._idle) < KEPT:
            self._idle.append(connection)
        else:
            connection.close()

    def _after_fork(self) -> None:
        """Leave the connections to the parent: an answer to one process could be read by the other."""
        _inherited.append(self._idle)
        self._idle, self._own = [], threading.local()
