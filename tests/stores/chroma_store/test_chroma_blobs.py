"""Blobs beside a Chroma collection: whole or not there, whatever was killed, damaged, deleted or crafted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import chromadb
import numpy as np
import pytest
from warm_process import run_warm

from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores import ChromaStore
from clipretrieval.stores.chroma import blobs as _blobs

OLD, NEW = (np.random.default_rng(seed).bytes(2500) for seed in range(2))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a thousand bytes into a part."""
    monkeypatch.setattr(_blobs, "PART_BYTES", 1000)


def client_of(store: ChromaStore) -> Any:
    return store._connection.client


def beside(store: ChromaStore) -> set[str]:
    """Return the names of the collections beside the store's own, without its name."""
    own, server = store._connection.collection, client_of(store)._server
    found = {each.name for each in server.list_collections()}
    return {name.removeprefix(own) for name in found if name.startswith(own)} - {""}


def head_of(store: ChromaStore, name: str = "a") -> dict[str, Any]:
    collection = client_of(store).get_collection(f"{store._connection.collection}.blob-{name}.head")
    head: dict[str, Any] = json.loads(collection.metadata[_blobs.HEAD_KEY])
    return head


def put_head(store: ChromaStore, head: Any) -> None:
    collection = client_of(store).get_collection(f"{store._connection.collection}.blob-a.head")
    collection.modify(metadata={_blobs.HEAD_KEY: head if isinstance(head, str) else json.dumps(head)})


@pytest.mark.usefixtures("small")
def test_a_blob_lies_in_collections_of_its_own(make: Callable[..., ChromaStore]) -> None:
    """Its parts and a head lie beside the store's collection; the parts go when they are replaced."""
    store = make()
    store.write_blob("a", OLD)
    token = head_of(store)["held"]["token"]
    assert beside(store) == {".blob-a.head", *(f".blob-a.{token}.{part}" for part in range(3))}
    store.write_blob("a", b"x")
    token = head_of(store)["held"]["token"]
    assert beside(store) == {".blob-a.head", f".blob-a.{token}.0"}
    store.write_blob("a", b"")
    assert beside(store) == {".blob-a.head"}
    assert head_of(store)["leftovers"] == {}
    store.write_blob("a", None)
    assert beside(store) == set()


@pytest.mark.parametrize("size", [999, 1000, 1001, 2000])
@pytest.mark.usefixtures("small")
def test_parts_end_anywhere(make: Callable[..., ChromaStore], size: int) -> None:
    """A blob may fill its last part or not."""
    store = make()
    store.write_blob("a", (OLD + NEW)[:size])
    assert store.read_blob("a") == (OLD + NEW)[:size]
    assert len(beside(store)) == 1 + -(-size // 1000)


def test_a_blob_may_be_larger_than_a_request(make: Callable[..., ChromaStore]) -> None:
    """More bytes than the server takes in one request are kept."""
    content = np.random.default_rng(2).bytes(42 << 20)
    store = make()
    store.write_blob("a", content)
    assert store.read_blob("a") == content


@pytest.mark.usefixtures("small")
def test_what_is_damaged_is_told_and_can_be_written_again(make: Callable[..., ChromaStore]) -> None:
    """A changed or deleted part and a malformed head are StoreCorruptedError, until the blob is written."""

    def change_part() -> None:
        part(1).modify(metadata={_blobs.PART_KEY: "AAAA"})

    def spoil_part() -> None:
        part(1).modify(metadata={_blobs.PART_KEY: "é"})

    def empty_part() -> None:
        part(1).modify(metadata={"other": 1})

    def delete_part() -> None:
        client_of(store).delete_collection(part(2).name)

    def part(number: int) -> Any:
        token = head_of(store)["held"]["token"]
        return client_of(store).get_collection(f"{store._connection.collection}.blob-a.{token}.{number}")

    def head(**changes: Any) -> Callable[[], None]:
        def change() -> None:
            found = head_of(store)
            put_head(store, {**found, "held": {**found["held"], **changes}})

        return change

    wrong = {"size": -1, "parts": 10**9, "token": "../../x", "sha256": "0" * 63}
    store = make()
    for damage in (
        *(change_part, spoil_part, empty_part, delete_part, head(sha256="0" * 64), head(parts=2)),
        *(head(**{name: value}) for name, value in wrong.items()),
        lambda: put_head(store, "{"),
        lambda: put_head(store, [1]),
        lambda: put_head(store, {"collection": "x", "held": None, "leftovers": {"../x": [1, 0.0]}}),
        lambda: put_head(store, {"collection": "x", "held": None, "leftovers": {"0" * 16: [10**9, 0.0]}}),
    ):
        store.write_blob("a", OLD)
        damage()
        with pytest.raises(
            StoreCorruptedError, match=r"the blob 'a' of .* is damaged: .* write the blob again"
        ):
            store.read_blob("a")
        store.write_blob("a", NEW)
        assert store.read_blob("a") == NEW
    store.write_blob("a", OLD)
    put_head(store, "{")
    store.write_blob("a", b"")
    store.write_blob("a", None)
    assert store.read_blob("a") is None
    store.write_blob("a", b"")
    put_head(store, "{")
    store.write_blob("a", None)
    assert store.read_blob("a") is None


def test_blobs_go_with_their_collection(tmp_path: Path) -> None:
    """A collection that was deleted and made anew has none of the blobs before, and clears them away."""
    client = chromadb.PersistentClient(str(tmp_path / "data"))
    with ChromaStore(client=client, collection="animals") as store:
        store.write_blob("a", OLD)
        store.write_blob("b", OLD)
    client.delete_collection("animals")
    with ChromaStore(client=client, collection="animals") as store:
        assert (store.read_blob("a"), store.read_blob("b")) == (None, None)
        store.write_blob("a", NEW)
        store.write_blob("b", None)
        assert (store.read_blob("a"), store.read_blob("b")) == (NEW, None)
    assert len(client.list_collections()) == 3
    client.close()


def test_a_collections_name_may_be_too_long(tmp_path: Path) -> None:
    """Where collection and blob together have too long a name the blob is refused, and read as none."""
    with ChromaStore(tmp_path / "data", collection="c" * 472) as store:
        store.write_blob("a", b"x")
        assert store.read_blob("a") == b"x"
        longest = "a" * 64
        with pytest.raises(InvalidInputError, match="Chroma takes 512"):
            store.write_blob(longest, b"x")
        store.write_blob(longest, None)
        assert store.read_blob(longest) is None


@pytest.mark.usefixtures("small")
def test_another_clients_leftovers_are_waited_for(chroma_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a server, parts that another client may be writing are kept for an hour, and then deleted."""
    where: dict[str, Any] = {"host": "127.0.0.1", "port": chroma_port, "collection": f"test-{uuid4().hex}"}
    store, dying = ChromaStore(**where), ChromaStore(**where)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    store.write_blob("a", OLD)
    with monkeypatch.context() as patch:
        patch.setattr(_blobs.BlobHead, "turned", die)
        with pytest.raises(KeyboardInterrupt):
            dying.write_blob("a", NEW)
    assert store.read_blob("a") == OLD
    store.write_blob("a", OLD)
    (token,) = head_of(store)["leftovers"]
    assert f".blob-a.{token}.2" in beside(store)
    monkeypatch.setattr(_blobs, "ABANDONED", -1.0)
    store.write_blob("a", OLD)
    assert head_of(store)["leftovers"] == {}
    assert len(beside(store)) == 4
    for each in (store, dying):
        each.close()


@pytest.mark.usefixtures("small")
def test_a_reader_at_a_server_never_sees_half(chroma_port: int) -> None:
    """While one client writes, another reads the old blob or the new one."""
    where: dict[str, Any] = {"host": "127.0.0.1", "port": chroma_port, "collection": f"test-{uuid4().hex}"}
    written = [bytes([number]) * 2500 for number in range(8)]
    with ChromaStore(**where) as writer, ChromaStore(**where) as reader, ThreadPoolExecutor(1) as pool:
        writer.write_blob("a", written[0])

        def follow() -> set[bytes | None]:
            seen: set[bytes | None] = set()
            while written[-1] not in seen:
                seen.add(reader.read_blob("a"))
            return seen

        following = pool.submit(follow)
        for content in written[1:]:
            writer.write_blob("a", content)
        assert following.result(timeout=60) <= set(written)


# Replaces a blob, and is killed before the change of the database of that number. Tells how many there are
# when it is not killed.
KILLED = """
import os, signal, sys
from clipretrieval.stores import ChromaStore
from clipretrieval.stores.chroma import blobs

folder, last, content = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
steps = 0
blobs.PART_BYTES = 1000

def killing(function):
    def call(*arguments, **options):
        global steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

store = ChromaStore(folder)
for name in ("_put_head", "_make", "_delete"):
    setattr(blobs.ChromaBlobs, name, killing(getattr(blobs.ChromaBlobs, name)))
store.write_blob("a", content)
store.close()
print(steps)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.usefixtures("small")
def test_a_kill_leaves_the_old_blob_or_the_new(tmp_path: Path) -> None:
    """Killed before any change of the database, a writer leaves a whole blob, and nothing for ever."""
    with ChromaStore(tmp_path / "first") as store:
        store.upsert(["p"], np.ones((1, 4)), [1])
        store.write_blob("a", OLD)

    def killed_at(step: int) -> subprocess.CompletedProcess[str]:
        shutil.copytree(tmp_path / "first", tmp_path / str(step))
        return run_warm(["-c", KILLED, tmp_path / str(step), step, NEW.hex()])

    whole = killed_at(0)
    assert whole.returncode == 0, whole.stderr
    found = []
    for step in range(1, int(whole.stdout) + 1):
        done = killed_at(step)
        assert done.returncode == -9, done.stderr
        with ChromaStore(tmp_path / str(step)) as store:
            found.append(store.read_blob("a"))
            store.write_blob("a", b"next")
            assert (store.read_blob("a"), store.count()) == (b"next", 1)
            assert len(beside(store)) == 2
    turned = found.index(NEW)
    assert found == [OLD] * turned + [NEW] * (len(found) - turned)
    assert turned == 5
