"""What stores do in a process that was forked while they were open: answer rightly, or refuse at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from forked import FORKS, GETS, ended_well, fork
from postgres_server import PostgresServer

from clipretrieval.errors import StoreLockedError, UnsupportedOperationError
from clipretrieval.stores import (
    ChromaStore,
    FaissStore,
    MemoryStore,
    PgVectorStore,
    PineconeStore,
)
from clipretrieval.testing import PineconeEmulator

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
ROOT = Path(__file__).parents[2]
ROWS = np.random.default_rng(0).standard_normal((3000, 16), dtype=np.float32)
NAMES = [str(number) for number in range(3000)]
READERS = 3
"""Children that read beside their parent."""


@pytest.fixture(scope="module")
def pinecone() -> Iterator[Callable[[str], PineconeStore]]:
    """Open stores at an emulator."""
    with PineconeEmulator("a-key") as emulator:
        yield lambda index: PineconeStore(index, api_key="a-key", host=emulator.host)


def filled(store: Any) -> Any:
    store.upsert(NAMES[:200], ROWS[:200], list(range(200)))
    return store


LOCAL = {
    "memory": lambda _: MemoryStore(),
    "flat": lambda _: FaissStore(index="Flat"),
    "cosine": lambda _: FaissStore(index="Flat", metric="cosine"),
    "lists": lambda _: FaissStore(index="IVF16,Flat", recall=0.5),
    "graph": lambda _: FaissStore(index="HNSW16", recall=0.5),
    "codes": lambda _: FaissStore(index="SQ8", recall=0.5),
    "folder": lambda path: FaissStore(path, index="IVF16,SQ8", recall=0.5),
}


@pytest.mark.parametrize("kind", LOCAL)
def test_a_forked_process_searches_what_its_parent_has_searched(kind: str, tmp_path: Path) -> None:
    """The parent's OpenMP threads, which a child lacks, are not waited for, and the answers are the same."""
    store = LOCAL[kind](tmp_path / "store")
    store.upsert(NAMES, ROWS, list(range(3000)))
    expected = store.search(ROWS[:300], 5)

    def search() -> None:
        assert store.search(ROWS[:300], 5).ids.tolist() == expected.ids.tolist()
        if kind != "folder":  # which is the parent's to write
            store.upsert(["more"], ROWS[:1] + 9, [7])
            assert store.search(ROWS[:1] + 9, 1).labels.tolist() == [[7]]
        else:
            with pytest.raises(StoreLockedError):
                store.upsert(["more"], ROWS[:1], [7])
        store.close()

    for _ in range(FORKS):
        assert ended_well(fork(search))
    assert store.count() == 3000
    store.close()


def check_refused(store: Any, *calls: Callable[[], object]) -> None:
    """Make these calls, and those of every store, in children, which are refused; the parent goes on."""
    expected = store.search(ROWS[:20], 3).ids.tolist()

    def use() -> None:
        for call in (
            lambda: store.search(ROWS[:1], 1),
            lambda: store.get(["1"]),
            lambda: store.upsert(["1"], ROWS[:1], [1]),
            store.count,
            store.flush,
            *calls,
        ):
            with pytest.raises(UnsupportedOperationError, match='method "spawn"'):
                call()
        store.close()
        store.close()

    for _ in range(FORKS):
        assert ended_well(fork(use))
    assert store.search(ROWS[:20], 3).ids.tolist() == expected
    store.close()


def read_beside(store: Any) -> None:
    """Read and search in several processes at a time, and compare every answer."""
    expected = store.search(ROWS[:200], 2).ids.tolist()
    ready, go = os.pipe()

    def read(place: int) -> None:
        for count in range(GETS):
            number = (count * (READERS + 1) + place) % 200
            found = store.get([NAMES[number]])
            assert (found.ids.tolist(), found.labels.tolist()) == ([NAMES[number]], [number])
            assert np.array_equal(found.vectors, ROWS[number : number + 1])
            if count % 10 == 0:
                near = store.search(ROWS[number : number + 1], 2)
                assert near.ids.tolist() == expected[number : number + 1]

    def read_in_child(place: int) -> None:
        os.close(go)
        os.read(ready, 1)  # until all are there
        read(place)
        store.close()

    children = [fork(lambda place=place: read_in_child(place)) for place in range(1, READERS + 1)]  # type: ignore[misc]
    os.close(ready)
    os.close(go)
    failure: Exception | None = None
    try:
        read(0)
    except Exception as error:  # noqa: BLE001  raised once the children have ended
        failure = error
    well = [ended_well(child) for child in children]
    assert all(well), failure
    assert failure is None


def test_forked_processes_read_their_own_records_at_a_chroma_server(chroma_port: int) -> None:
    """No process reads an answer to another, which one connection in all of them would allow."""
    with ChromaStore(host="127.0.0.1", port=chroma_port, collection="forked") as store:
        read_beside(filled(store))


def test_forked_processes_read_their_own_records_in_postgresql(postgres: PostgresServer) -> None:
    """No process reads an answer to another, nor does a child end its parent's session."""
    with PgVectorStore(postgres.conninfo, table="forked") as store:
        read_beside(filled(store))


def test_a_process_forked_in_a_transaction_leaves_it_to_its_parent(postgres: PostgresServer) -> None:
    """However the child leaves the block, what the parent does in it is stored."""
    parent = os.getpid()

    def write(number: int) -> None:
        with store.transaction(), store.transaction():
            store.upsert([str(number)], np.ones((1, 2)), [number])
            child = os.fork()
            if child:
                assert ended_well(child)
                store.write_manifest({"number": number})
            elif number == 0:
                raise KeyError

    with PgVectorStore(postgres.conninfo, table="forked-in-block") as store:
        for number in range(2):
            status = 1
            try:
                with suppress(KeyError):
                    write(number)
                status = store.count() - number  # to a child, the parent's block has not ended
            finally:
                if os.getpid() != parent:
                    os._exit(status)
        assert (store.count(), store.read_manifest()) == (2, {"number": 1})


def test_a_forked_process_is_refused_where_lance_runs_in_its_parent(tmp_path: Path) -> None:
    """Its threads could be made anew there, and would often crash; the child's close changes nothing."""
    pytest.importorskip("lancedb")
    from clipretrieval.stores import LanceStore

    store = filled(LanceStore(tmp_path / "store"))
    listings = store.scan()
    check_refused(
        store,
        lambda: next(listings),
        lambda: LanceStore(tmp_path / "store"),
        lambda: LanceStore(tmp_path / "other"),
    )
    assert not (tmp_path / "other").exists()


def test_forked_processes_read_their_own_records_at_pinecone(pinecone: Any) -> None:
    """No process reads an answer to another, nor is the parent's connection closed by a child."""
    with pinecone("forked") as store:
        read_beside(filled(store))


@pytest.mark.parametrize("place", ["chroma", "pgvector", "pinecone"])
def test_a_forked_process_goes_on_with_a_scan_and_writes(
    place: str, request: pytest.FixtureRequest, pinecone: Any
) -> None:
    """A listing begun in the parent ends in the child by a connection of the child's, which also writes."""
    name = f"scanned-{place}"
    store: Any
    if place == "pinecone":
        store = pinecone(name)
    elif place == "pgvector":
        store = PgVectorStore(request.getfixturevalue("postgres").conninfo, table=name)
    else:
        port = request.getfixturevalue("chroma_port")
        store = ChromaStore(host="127.0.0.1", port=port, collection=name)
    listings = filled(store).scan()

    def scan() -> None:
        found = [each for listing in listings for each in listing.ids if each != "child"]
        assert sorted(found) == sorted(NAMES[:200])
        store.upsert(["child"], ROWS[:1], [500])
        store.close()

    for _ in range(FORKS):
        assert ended_well(fork(scan))
    assert store.get(["child"]).labels.tolist() == [500]
    store.close()


@pytest.mark.parametrize("place", ["memory", "folder", "client"])
def test_a_forked_process_is_refused_where_chroma_runs_in_its_parent(place: str, tmp_path: Path) -> None:
    """The error comes at once and says what to do; the child's close changes nothing for the parent."""
    client = chromadb.PersistentClient(str(tmp_path / "own")) if place == "client" else None
    options = {"memory": {}, "folder": {"path": tmp_path / "store"}, "client": {"client": client}}[place]
    check_refused(filled(ChromaStore(**options)))


def test_a_chroma_of_its_own_is_refused_in_a_forked_process(tmp_path: Path) -> None:
    """One pool of threads serves every Chroma of a process: a new one would wait for it just as well."""
    ChromaStore(tmp_path / "store").close()
    client = chromadb.PersistentClient(str(tmp_path / "own"))

    def open_anew() -> None:
        for options in ({}, {"path": tmp_path / "store"}, {"client": client}):
            with pytest.raises(UnsupportedOperationError, match="cannot be opened"):
                ChromaStore(**options)

    assert ended_well(fork(open_anew))


def test_a_callers_client_of_a_server_is_not_shared(chroma_port: int) -> None:
    """Only its maker can make it anew; one that was made in the child serves a new store."""
    store = ChromaStore(client=chromadb.HttpClient("127.0.0.1", chroma_port), collection="callers")
    filled(store)

    def use() -> None:
        with pytest.raises(UnsupportedOperationError, match="Make a client in this process"):
            store.get(["1"])
        client = chromadb.HttpClient("127.0.0.1", chroma_port)
        assert ChromaStore(client=client, collection="callers").get(["1"]).labels.tolist() == [1]

    assert ended_well(fork(use))
    assert store.get(["2"]).labels.tolist() == [2]


LEAVING = """
import os, sys
import numpy as np
from clipretrieval.errors import StoreLockedError
from clipretrieval.stores import ChromaStore, FaissStore

folder = sys.argv[1]
stores = [ChromaStore(), ChromaStore(folder + "/chroma"), FaissStore(folder + "/faiss")]
for store in stores:
    store.upsert(["a"], np.ones((1, 2)), [1])
child = os.fork()
if not child:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert [store.get(["a"]).labels.tolist() for store in stores] == [[1], [1], [1]]
other = os.fork()
if not other:
    import subprocess
    opens = '''
import sys
import numpy as np
from clipretrieval.errors import StoreLockedError
from clipretrieval.stores import ChromaStore, FaissStore
for opened in (lambda: ChromaStore(sys.argv[1] + "/chroma"),
               lambda: FaissStore(sys.argv[1] + "/faiss").upsert(["b"], np.ones((1, 2)), [1])):
    try:
        opened()
    except StoreLockedError:
        continue
    sys.exit(3)
'''
    os._exit(subprocess.run([sys.executable, "-c", opens, folder]).returncode)
assert os.waitpid(other, 0)[1] == 0
for store in stores:
    store.close()
print("whole")
"""


def test_a_child_that_ends_leaves_stores_and_locks_to_its_parent(tmp_path: Path) -> None:
    """The end of its interpreter waits for none of Chroma's threads and frees no folder of the parent's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, tmp_path],
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "whole\n", done.stderr


def test_a_forked_process_waits_for_no_thread_that_was_making_a_client(chroma_port: int) -> None:
    """Chroma's lock, held by another thread at the fork, stays held in the child, where no store takes it."""
    held, leave = threading.Event(), threading.Event()

    def make() -> None:
        with SharedSystemClient._refcount_lock:
            held.set()
            leave.wait()

    thread = threading.Thread(target=make)
    thread.start()
    held.wait()
    child = fork(lambda: ChromaStore(host="127.0.0.1", port=chroma_port, collection="made").close())
    leave.set()
    thread.join()
    assert ended_well(child)
