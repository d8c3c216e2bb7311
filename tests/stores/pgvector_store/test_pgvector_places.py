"""PgVectorStore at servers and databases that are not as it needs them, and what it keeps secret."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from postgres_server import PASSWORD, PostgresServer
from psycopg.pq import Conninfo

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import (
    ClipRetrievalError,
    FingerprintMismatchError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import PgVectorStore, create_store
from clipretrieval.stores.pgvector.server import Secret, Server

ROWS = np.eye(3, 4, dtype=np.float32)


def told(error: BaseException | None) -> str:
    """All that an exception tells, with its causes, and the local variables of every frame of it."""
    if error is None:
        return ""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown.stack[:] = [frame for frame in shown.stack if "/tests/" not in frame.filename]
    own = [repr(error), repr(vars(error)), *shown.format()]
    return "".join([*own, told(error.__cause__), told(error.__context__)])


@pytest.fixture
def silent() -> Any:
    """A port whose server takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_does_not_answer_is_unavailable(silent: int) -> None:
    """One line tells who was asked, after the time that was given."""
    with pytest.raises(StoreUnavailableError, match=r"'x' at 127.0.0.1:\d+ cannot be reached") as caught:
        PgVectorStore(f"postgresql://me@127.0.0.1:{silent}/x", timeout=0.1)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_database_that_will_not_do_says_what_to_run(postgres: PostgresServer) -> None:
    """Without the extension nothing is made."""
    name = "without_extension"
    postgres.execute(f"CREATE DATABASE {name}")
    with pytest.raises(StoreUnavailableError, match="CREATE EXTENSION vector"):
        PgVectorStore(f"{postgres.conninfo} dbname={name}")
    found = postgres.execute("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'clipretrieval%'", name)
    assert found == [(0,)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"conninfo": "host=a password='secret"}, "connection string of libpq"),
        ({"conninfo": "postgresql://me:p@secret@127.0.0.1:5432/animals"}, "%40"),
        ({"conninfo": "postgresql://me:pa/secret@127.0.0.1:5432/animals"}, "%2F"),
        ({"conninfo": "postgresql://me:12/secret@127.0.0.1/animals"}, "%2F"),
        ({"conninfo": 5}, "must be str"),
        ({"password": b"secret"}, "must be str"),
        ({"conninfo": "password=secret", "password": "secret"}, "one of them"),
        ({"table": "a b"}, "table must be"),
        ({"table": "x" * 51}, "table must be"),
        ({"metric": "l1"}, "metric"),
        ({"timeout": 0}, "timeout"),
        ({"exact_up_to": -1}, "exact_up_to"),
        ({"create": 1}, "create"),
    ],
)
def test_malformed_options_are_refused(options: dict[str, Any], expected: str) -> None:
    """Before anything is contacted, and without the password that they may hold."""
    with pytest.raises(InvalidInputError, match=expected) as caught:
        create_store("pgvector", **{"conninfo": "host=192.0.2.1", **options})
    assert "secret" not in told(caught.value)


def test_another_table_is_refused(make: Any, postgres: PostgresServer) -> None:
    """Of another metric, of something else, or none where none may be made."""
    store = make(metric="cosine")
    table = store.location()["table"]
    with pytest.raises(FingerprintMismatchError, match="'cosine'"):
        make(table=table)
    postgres.execute(f'CREATE TABLE "{table}-theirs" (a int)')
    with pytest.raises(InvalidInputError, match="not made by PgVectorStore"):
        make(table=f"{table}-theirs")
    postgres.execute(f'CREATE SCHEMA other; CREATE TABLE other."{table}" (a int)')
    with pytest.raises(InvalidInputError, match="not made by PgVectorStore"):
        make(conninfo=f"{postgres.conninfo} options='-c search_path=other,public'", table=table)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="no table"):
            make(table=f"{table}-none", create=False)
    postgres.execute(f'DROP TABLE "{table}"')
    with pytest.raises(StoreUnavailableError, match="gone"):
        store.count()


def test_a_user_who_may_only_read_reads(make: Any, postgres: PostgresServer) -> None:
    """Searches are answered, and a write is refused with what the server says."""
    store = make()
    store.upsert(["a"], ROWS[:1], [1])
    table = store.location()["table"]
    postgres.execute(f"DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
    for name in (table, f"{table}_store", f"{table}_blobs"):
        postgres.execute(f'GRANT SELECT ON "{name}" TO reader')
    with make(conninfo=f"{postgres.conninfo} user=reader", table=table) as reader:
        assert reader.search(ROWS[:1], 1).ids.tolist() == [["a"]]
        with pytest.raises(UnsupportedOperationError, match="permission denied"):
            reader.upsert(["b"], ROWS[:1], [1])
        with pytest.raises(UnsupportedOperationError, match="permission denied"):
            make(conninfo=f"{postgres.conninfo} user=reader")


def test_nobody_waits_for_ever_for_another_writer(make: Any) -> None:
    """A writer in a transaction keeps others out, who are told after their time; readers go on."""
    store = make()
    store.upsert(["a"], ROWS[:1], [1])
    with make(table=store.location()["table"], timeout=0.05) as other, store.transaction():
        store.upsert(["b"], ROWS[1:2], [2])
        with pytest.raises(StoreLockedError, match="another writer"):
            other.delete(["a"])
        assert other.count() == 1


def test_a_statement_that_takes_too_long_says_so(make: Any, postgres: PostgresServer) -> None:
    """The limit is the user's, and so is the remedy."""
    table = make().location()["table"]
    with make(conninfo=f"{postgres.conninfo} options='-c statement_timeout=50ms'", table=table) as store:
        with pytest.raises(StoreError, match="statement_timeout"):
            store._connections.run(lambda connection: connection.execute("SELECT pg_sleep(1)"))
        assert store.count() == 0


@pytest.mark.parametrize("name", ["scram_client_key", "oauth_client_secret"])
def test_other_secrets_of_libpq_are_no_parameters_to_be_saved(name: str) -> None:
    """They are kept apart, as passwords are."""
    if not any(option.keyword == name.encode() for option in Conninfo.get_defaults()):
        pytest.skip(f"this libpq has no {name}")
    server = Server(Secret(f"host=db {name}={PASSWORD}"), Secret(None), 1)
    assert (server.conninfo, server._secrets.reveal()) == ("host=db", {name: PASSWORD})


def test_the_password_is_shown_nowhere(
    make: Any, postgres: PostgresServer, silent: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither representations nor logs nor errors, with the local variables of their frames, have it."""
    caplog.set_level(logging.DEBUG)
    wrong = PASSWORD[::-1]
    store = make(password=PASSWORD)
    texts = [repr(store), repr(store.location()), *map(repr, vars(store).values())]
    texts += [repr(vars(each)) for each in (store._server, store._connections)]
    host = f"127.0.0.1:{postgres.port}"
    calls: list[Callable[[], Any]] = [
        lambda: make(password=wrong),
        lambda: make(conninfo=f"postgresql://postgres:{wrong}@{host}/postgres"),
        lambda: make(conninfo=f"{postgres.conninfo} password='{wrong}'"),
        lambda: make(conninfo=f"host=127.0.0.1 port={silent}", password=PASSWORD, timeout=0.1),
        lambda: make(conninfo=f"postgresql://me:{PASSWORD}@{host}/nowhere"),
        lambda: make(password=PASSWORD, metric="l1"),
        lambda: create_store("pgvector", conninfo=f"host=x password={PASSWORD}", tabel="x"),
        lambda: store.upsert(["a"], ROWS[:1], ["x" * 99], [{"a": object()}]),
        lambda: pickle.dumps(store),
        lambda: copy.copy(store),
        lambda: pickle.dumps(store._server._secrets),
    ]
    for call in calls:
        with pytest.raises(ClipRetrievalError) as caught:
            call()
        texts.append(told(caught.value))
    assert "password authentication failed" in texts[-len(calls)]
    texts += [caplog.text]
    for text in texts:
        assert PASSWORD not in text
        assert wrong not in text


def test_a_classifier_is_saved_without_the_password(
    postgres: PostgresServer, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens again where the password is known, if its user agrees, and with a store that is given."""
    options = {"conninfo": f"{postgres.conninfo} password={PASSWORD}", "table": make().location()["table"]}
    classifier = RetrievalClassifier(store="pgvector", store_options=options)
    assert PASSWORD not in repr(classifier)
    assert PASSWORD.encode() not in pickle.dumps(classifier)
    classifier.fit(ROWS, ["a", "b", "c"]).save(tmp_path / "saved")
    text = (tmp_path / "saved" / "classifier.json").read_text()
    assert PASSWORD not in text
    kept = json.loads(text)["store"]
    assert (kept["name"], kept["options"]["table"]) == ("pgvector", options["table"])
    with pytest.raises(InvalidInputError, match="allow_remote=True"):
        RetrievalClassifier.load(tmp_path / "saved")
    again = RetrievalClassifier.load(tmp_path / "saved", allow_remote=True)
    assert again.predict(ROWS).tolist() == ["a", "b", "c"]
    again.store_.close()
    monkeypatch.delenv("PGPASSWORD")
    with pytest.raises(StoreUnavailableError, match="PGPASSWORD"):
        RetrievalClassifier.load(tmp_path / "saved", allow_remote=True)
    with PgVectorStore(**kept["options"], password=PASSWORD) as given:
        again = RetrievalClassifier.load(tmp_path / "saved", store=given)
        assert again.partial_fit(2 * ROWS[:1], ["d"]).predict(2 * ROWS[:1]).tolist() == ["d"]
    classifier.store_.close()


def test_a_closed_store_refuses_everything(make: Any) -> None:
    """After `close` every method but `close` raises, and the connections are gone."""
    store = make()
    store.upsert(["a"], ROWS[:1], [1])
    listings = store.scan()
    store.close()
    store.close()
    assert not store._connections._idle
    for call in (
        store.count,
        store.flush,
        store.read_manifest,
        store.build_index,
        lambda: store.write_manifest({}),
        lambda: store.search(ROWS[:1], 1),
        lambda: store.get(["a"]),
        lambda: store.delete(["a"]),
        lambda: next(listings),
        lambda: store.transaction().__enter__(),
    ):
        with pytest.raises(StoreError, match="closed"):
            call()
    assert "closed" in repr(store)
