"""PgVectorStore with many writers, in transactions, and when writers and servers are killed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import psycopg
import pytest
from database_writers import check_two_writers, kill_servers
from postgres_server import PASSWORD, PostgresServer, postgres_server

from clipretrieval.errors import (
    InvalidInputError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.testing import kill_writers

ROWS = np.eye(3, 4, dtype=np.float32)


def test_a_transaction_is_stored_whole_or_not_at_all(make: Any) -> None:
    """Vectors, manifest and blobs come together, and an error in the block takes all of them back."""
    store = make()
    other = make(table=store.location()["table"])
    store.upsert(["a"], ROWS[:1], [1])
    with store.transaction(), store.transaction():
        store.upsert(["b"], ROWS[1:2], [2])
        store.write_manifest({"a": 1})
        store.write_blob("a", b"x")
        assert (store.count(), other.count(), other.read_manifest()) == (2, 1, {})
    assert (other.count(), other.read_manifest(), other.read_blob("a")) == (2, {"a": 1}, b"x")

    def fail() -> None:
        with store.transaction():
            store.delete(["a"])
            store.write_manifest({})
            store.upsert(["a", "a"], ROWS[:2], [1, 1])

    with pytest.raises(InvalidInputError):
        fail()
    assert (store.count(), store.read_manifest()) == (2, {"a": 1})


def test_an_error_that_a_block_catches_undoes_its_call_alone(make: Any, postgres: PostgresServer) -> None:
    """The rest of the block is stored; inner blocks are parts of it."""
    store = make(timeout=0.05)
    table = store.location()["table"]
    store.upsert(["a", "b"], ROWS[:2], [1, 2])
    with psycopg.connect(postgres.conninfo) as theirs, store.transaction():
        theirs.execute(f"SELECT 1 FROM \"{table}\" WHERE id = 'a' FOR UPDATE")  # noqa: S608
        store.upsert(["c"], ROWS[2:], [3])
        with pytest.raises(StoreLockedError, match="another writer"):
            store.delete(["b", "a"])
        with suppress(KeyError), store.transaction():
            store.write_manifest({"a": 1})
            raise KeyError
        with pytest.raises(UnsupportedOperationError, match="block"):
            store.build_index()
    assert store.get(["a", "b", "c"]).labels.tolist() == [1, 2, 3]
    assert store.read_manifest() == {}


def test_a_dimension_that_was_taken_back_is_none(make: Any) -> None:
    """A block that fails leaves the store without one."""
    store = make()
    with suppress(KeyError), store.transaction():
        store.upsert(["a"], ROWS[:1], [1])
        assert store.dim == 4
        raise KeyError
    assert store.dim is None
    store.upsert(["a"], ROWS[:1, :2], [1])
    assert store.dim == 2


def test_a_search_sees_the_table_at_one_moment(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's deletion between two statements of a search takes nothing from its answer."""
    store = make()
    other = make(table=store.location()["table"])
    names = [f"{number:03}" for number in range(100)]
    store.upsert(names, np.ones((100, 4)), [1] * 100)
    real = store._tables.statement

    def delete_first(text: str) -> Any:
        if "<= %(limit)s" in text:
            assert other.delete(names[:95]) == 95
        return real(text)

    monkeypatch.setattr(store._tables, "statement", delete_first)
    assert store.search(ROWS[:1], 10).ids.tolist() == [names[:10]]
    assert store.count() == 5


def test_a_database_may_isolate_transactions_by_default(make: Any, postgres: PostgresServer) -> None:
    """Two writers go on where the database would have one of them fail."""
    name = "isolated"
    postgres.execute(f"CREATE DATABASE {name}")
    postgres.execute("CREATE EXTENSION vector", name)
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    stores = [make(conninfo=f"{postgres.conninfo} dbname={name}", table="a") for _ in range(2)]

    def write(number: int) -> None:
        for each in range(10):
            stores[number].upsert([f"{number}-{each}", "both"], ROWS[:2], [each, each])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    assert stores[0].count() == 21


def test_a_first_upsert_in_a_block_keeps_no_reader_out(make: Any, postgres: PostgresServer) -> None:
    """Nor does it change the table, which one who was granted it may not."""
    store = make()
    table = store.location()["table"]
    postgres.execute(f"DROP ROLE IF EXISTS writer; CREATE ROLE writer LOGIN PASSWORD '{PASSWORD}'")
    for name in (table, f"{table}_store", f"{table}_blobs"):
        postgres.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON "{name}" TO writer')
    with make(conninfo=f"{postgres.conninfo} user=writer", table=table, timeout=0.5) as other:
        for _ in range(8):
            assert len(store.get(["a"])) == 0
        with other.transaction():
            assert other.count() == 0
            other.upsert(["a"], ROWS[:1], [1])
            assert (store.count(), store.dim, other.dim) == (0, None, 4)
            assert store.search(ROWS[:1], 1).ids.tolist() == [[""]]
        assert store.get(["a"]).labels.tolist() == [1]


def test_first_writers_do_not_stand_in_each_others_way(make: Any) -> None:
    """Eight make the same tables and settle the dimension at once; one type of labels wins."""
    table, ready = make().location()["table"] + "-x", threading.Barrier(8)

    def write(number: int) -> bool:
        ready.wait()
        store = make(table=table)
        try:
            store.upsert([str(number), "both"], ROWS[:2], [number, 7] if number % 2 else ["x", "y"])
        except InvalidInputError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        wrote = list(pool.map(write, range(8)))
    assert sum(wrote) == 4
    assert make(table=table).count() == sum(wrote) + 1


def test_a_broken_connection_is_made_anew(make: Any, postgres: PostgresServer) -> None:
    """After the server ended all sessions, each verb goes on at once, in a scan too."""
    store = make()
    store.upsert(["a", "b"], ROWS[:2], [1, 2])
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'clipretrieval'"
    listings = store.scan()

    def rename() -> None:
        with store.transaction():
            store.write_manifest({"renamed": True})

    for call in (
        lambda: next(listings),
        lambda: store.upsert(["c"], ROWS[2:], [3]),
        lambda: store.search(ROWS, 1),
        lambda: store.delete(["a"]),
        rename,
    ):
        postgres.execute(end)
        call()  # type: ignore[no-untyped-call]
    assert store.get(["a", "b", "c"]).labels.tolist() == [2, 3]
    assert store.read_manifest() == {"renamed": True}

    def go_on() -> None:
        with store.transaction():
            store.delete(["b"])
            postgres.execute(end)
            with suppress(StoreUnavailableError):
                store.delete(["c"])

    with pytest.raises(StoreUnavailableError, match="broke"):
        go_on()
    assert store.count() == 2


def test_killed_writers_lose_nothing(make: Any) -> None:
    """After each of two kills all that was flushed is there, and nothing twice."""
    options = make().location()
    kills = list(kill_writers("pgvector", options, times=2, seed=1))
    assert [kill.lost for kill in kills] == [[], []]
    assert kills[-1].flushed


def test_two_writers_lose_and_double_nothing(make: Any) -> None:
    """Two processes write other and the same ids into one new table."""
    options = make().location()
    check_two_writers("pgvector", {**options, "table": options["table"] + "-y"}, rounds=5)


def test_a_killed_server_has_all_that_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the midst of writes and started again, it holds every call that returned, and no half one."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with postgres_server() as server:
        assert kill_servers(server, times=1) > 0
