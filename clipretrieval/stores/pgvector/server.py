"""A PostgreSQL server: how it is reached, with a password that nothing shows, and what its errors mean."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
from psycopg import conninfo as _conninfo
from psycopg import errors as pg
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format
from psycopg.pq import version as libpq_version

from clipretrieval._util.repr import safe_repr
from clipretrieval._util.secrets import MASK
from clipretrieval.errors import (
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.types import FloatArray

__all__ = ["SECRETS", "Secret", "Server"]

SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
NO_EXTENSION = (
    "has no extension pgvector; install it on the server (https://github.com/pgvector/pgvector), and have a "
    "user who may run in the database: CREATE EXTENSION vector"
)


class Secret:
    """A value that debuggers and tracebacks with local variables may print."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return MASK

    def __reduce__(self) -> str:
        raise UnsupportedOperationError("a password cannot be pickled or copied")

    def reveal(self) -> Any:
        """Return it; to be handed on at once, and kept in no variable of what may raise."""
        return self._value


class Server:
    """A database at a server.

    Parameters
    ----------
    conninfo : Secret of str
        As libpq takes it: ``"host=… dbname=…"`` or a URL. What it leaves out is libpq's to find, in the
        environment and the file of passwords.
    password : Secret of str or None
        If `conninfo` has none.
    timeout : float
        Seconds for a connection, and to wait for a lock.

    Raises
    ------
    InvalidInputError
        If they are anything else, or contradict each other.
    """

    def __init__(self, conninfo: Secret, password: Secret, timeout: float) -> None:
        read = _read(conninfo, password)
        if isinstance(read, str):
            raise InvalidInputError(read)
        self._public, self._secrets = read
        self._timeout = timeout

    @property
    def where(self) -> str:
        """The database in words."""
        host = self._public.get("host") or self._public.get("hostaddr") or "this machine"
        port, name = self._public.get("port"), self._public.get("dbname")
        return f"database {f'{name!r} ' if name else ''}at {host}{f':{port}' if port else ''}"

    @property
    def conninfo(self) -> str:
        """What reaches the same database, without a password."""
        return _conninfo.make_conninfo(**self._public)

    def connect(self) -> psycopg.Connection[Any]:
        """Return a new connection, which commits each statement and knows vectors.

        Raises
        ------
        StoreUnavailableError
            If there is none within the time, or the database lacks the extension.
        """
        options: dict[str, Any] = {
            "connect_timeout": str(max(2, round(self._timeout))),
            **_defaults(),
            **self._public,
        }
        connection: psycopg.Connection[Any] | None = None
        reason = ""
        try:
            connection = psycopg.connect("", autocommit=True, **options, **self._secrets.reveal())
        except psycopg.Error as error:
            reason = " ".join(str(error).split())
        except ValueError:  # characters that no connection can have
            reason = "a parameter holds characters that cannot be sent"
        if connection is None:
            # Raised here, and without a cause: the frames and the connection of psycopg's own error have the
            # password.
            raise StoreUnavailableError(
                f"the {self.where} cannot be reached: {reason.rstrip('.?') or 'no answer'}. Check that the "
                "server runs, its address, user and password (the argument, PGPASSWORD or ~/.pgpass)"
            )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        """Set what this session needs, and learn how the database calls vectors."""
        info = connection.info
        resolved = {"host": info.host, "port": str(info.port), "dbname": info.dbname, "user": info.user}
        self._public = {**{name: value for name, value in resolved.items() if value}, **self._public}
        with self.translated():
            # A commit that returned is on the device, whatever the database's own default.
            oid, *_ = connection.execute(
                "SELECT to_regtype('vector')::oid::int8, set_config('lock_timeout', %s, false), "
                "CASE current_setting('synchronous_commit') WHEN 'off' "
                "THEN set_config('synchronous_commit', 'on', false) END",
                [f"{max(1, round(1000 * self._timeout))}ms"],
            ).fetchone() or (None,)
        if oid is None:
            raise StoreUnavailableError(f"the {self.where} {NO_EXTENSION}")
        dumper = type("VectorDumper", (_VectorDumper,), {"oid": oid})
        connection.adapters.register_dumper(np.ndarray, dumper)
        connection.adapters.register_loader(oid, _VectorLoader)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise this library's errors in the place of psycopg's."""
        try:
            yield
        except (pg.LockNotAvailable, pg.DeadlockDetected, pg.SerializationFailure) as error:
            raise StoreLockedError(
                f"another writer holds the table in the {self.where} ({_line(error)}); try again, or look "
                "into pg_stat_activity for who holds it"
            ) from error
        except pg.QueryCanceled as error:
            raise StoreError(
                f"the {self.where} stopped a statement, which did nothing: {_line(error)}. Give it more "
                "time, say by options='-c statement_timeout=60s' in conninfo"
            ) from error
        except (pg.ReadOnlySqlTransaction, pg.InsufficientPrivilege) as error:
            raise UnsupportedOperationError(
                f"the {self.where} lets this user not do that: {_line(error)}. Use another server or user, "
                "or GRANT the right"
            ) from error
        except (pg.UndefinedTable, pg.UndefinedColumn) as error:
            raise StoreUnavailableError(
                f"the table in the {self.where} is gone or not as it was made: {_line(error)}; open it anew"
            ) from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise StoreUnavailableError(
                f"the {self.where} failed: {_line(error)}. What was being written may be there or not; try "
                "again when it runs"
            ) from error
        except psycopg.Error as error:
            raise StoreError(f"the {self.where} failed: {_line(error)}") from error

    @safe_repr
    def __repr__(self) -> str:
        return f"Server({self.where})"


def _read(conninfo: Secret, password: Secret) -> tuple[dict[str, str], Secret] | str:
    """Return the parameters of a connection and, apart, its passwords; or, in words, what is wrong.

    Nothing is raised, as a traceback would have them.
    """
    given, extra = conninfo.reveal(), password.reveal()
    if not isinstance(given, str) or not isinstance(extra, str | None):
        return "conninfo and password must be str, such as 'host=db.example.com dbname=animals'"
    try:
        found = {name: str(value) for name, value in _conninfo.conninfo_to_dict(given).items()}
    except (psycopg.Error, UnicodeError):
        return (
            "conninfo must be a connection string of libpq, such as 'host=db.example.com dbname=animals "
            "user=me' or 'postgresql://me@db.example.com/animals'; it cannot be read. It is not "
            "shown, as it may hold a password"
        )
    if _is_cut_apart(given, found):
        return (
            "conninfo is a URL whose server cannot be told from a password; it is not shown. Write the "
            "characters @ / : # ? % of a password as %40 %2F %3A %23 %3F %25, or leave it to PGPASSWORD or "
            "~/.pgpass"
        )
    secrets = {name: found.pop(name) for name in SECRETS if name in found}
    if extra is not None:
        if "password" in secrets:
            return "conninfo holds a password, and the argument password is another; give one of them"
        secrets["password"] = extra
    return found, Secret(secrets)


def _is_cut_apart(given: str, found: dict[str, str]) -> bool:
    """Tell whether libpq takes a part of a URL's user and password for something that messages show."""
    ports = found.get("port", "").split(",")
    shown = (found.get(name, "") for name in ("host", "dbname"))
    return "://" in given and (any("@" in each for each in shown) or not all(map(_is_port, ports)))


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit())


def _defaults() -> dict[str, str]:
    """Return options of connections that a conninfo may override."""
    # libpq 16 can refuse to send a password as it is; where a saved classifier leads may be anybody's server.
    careful = libpq_version() >= 160000 and "PGREQUIREAUTH" not in os.environ
    return {
        "application_name": "clipretrieval",
        "client_encoding": "UTF8",
        **({"require_auth": "!password"} if careful else {}),
    }


def _line(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())


class _VectorDumper(Dumper):
    """Sends a float32 row as pgvector's binary form: dimension, two zero bytes, big-endian values."""

    format = Format.BINARY

    def dump(self, obj: FloatArray) -> bytes:
        return struct.pack(">HH", len(obj), 0) + obj.astype(">f4").tobytes()


class _VectorLoader(Loader):
    """Reads pgvector's binary form."""

    format = Format.BINARY

    def load(self, data: Any) -> FloatArray:
        return np.frombuffer(data, dtype=">f4", offset=4).astype(np.float32)
