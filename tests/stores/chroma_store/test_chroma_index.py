"""Chroma's index in a folder: loaded where it is whole, built anew from the log where it is not."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chroma_parts import contents, fill, normal
from chromadb.config import Settings

from clipretrieval.errors import ClipRetrievalWarning, StoreCorruptedError, StoreError
from clipretrieval.stores import ChromaStore
from clipretrieval.stores.chroma import index

ROWS = normal(0, 150, 4)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Chroma write the index every 50 records."""
    monkeypatch.setattr(index, "RECORDS", 50)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose index was written."""
    folder = tmp_path_factory.mktemp("chroma") / "written"
    with pytest.MonkeyPatch.context() as patch, ChromaStore(folder) as store:
        patch.setattr(index, "RECORDS", 50)
        fill(store, ROWS)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(written, tmp_path / "data")


def files_of(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def changed(folder: Path) -> int:
    """When the index was last written."""
    return (files_of(folder) / "data_level0.bin").stat().st_mtime_ns


def log_of(folder: Path, statement: str) -> Any:
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as database, database:
        return database.execute(statement).fetchone()


def test_opening_does_not_replay_the_log(folder: Path) -> None:
    """What the index was written with is read from it, although the log still has it all."""
    ids = [f"{37 * place % 101:03}-{place}" for place in range(len(ROWS))]
    data = files_of(folder) / "data_level0.bin"
    data.write_bytes(data.read_bytes().replace(ROWS[7].tobytes(), ROWS[8].tobytes()))
    with ChromaStore(folder) as store:
        found = store.get(ids).vectors
    assert found[7].tobytes() == ROWS[8].tobytes()
    assert np.delete(found, 7, 0).tobytes() == np.delete(ROWS, 7, 0).tobytes()
    assert log_of(folder, "SELECT COUNT(*) FROM embeddings_queue") == (len(ROWS),)


def garble(file: Path) -> None:
    file.write_bytes(b"x" * file.stat().st_size)


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("header.bin", garble),
        ("header.bin", shorten),
        ("data_level0.bin", shorten),
        ("length.bin", Path.unlink),
        ("index_metadata.pickle", garble),
        ("index_metadata.pickle", shorten),
        ("index_metadata.pickle", lambda file: file.write_bytes(b"xxxx.")),
        ("", shutil.rmtree),
    ],
)
def test_a_damaged_index_is_built_anew(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    """Where a file is cut, garbled or missing, opening says so once and has everything."""
    damage(files_of(folder) / name)
    with pytest.warns(ClipRetrievalWarning, match="built anew"):
        store = ChromaStore(folder)
    with store:
        ids = store._records.ids()
        before = contents(store, ids)
        assert np.array(before[3][1], np.float32).tobytes() == ROWS.tobytes()
    with ChromaStore(folder) as store:
        assert contents(store, ids) == before


KILLED = """
import os, signal, sys
import numpy as np
from clipretrieval.stores import ChromaStore
from clipretrieval.stores.chroma.index import ChromaIndex
from clipretrieval.stores.chroma import index
index.RECORDS = 50
def die(self):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(ChromaIndex, sys.argv[2], die)
with ChromaStore(sys.argv[1]) as store:
    store.upsert([f"late-{n}" for n in range(60)], np.full((60, 4), 9.0), [1] * 60)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_while_the_index_is_written_is_seen(folder: Path, torn: bool) -> None:
    """The list of ids lies elsewhere meanwhile: another program builds the index, and a store says so."""
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, "_written"], check=False)
    assert killed.returncode == -signal.SIGKILL
    (mark,) = folder.glob("clipretrieval.*.writing")
    if torn:  # before Chroma wrote its own list
        (files_of(folder) / "index_metadata.pickle").unlink()
    served = shutil.copytree(folder, folder.parent / "served")
    client = chromadb.PersistentClient(str(served), Settings(anonymized_telemetry=False))
    there = client.get_collection("clipretrieval", embedding_function=None).get(include=["embeddings"])
    assert len(there["ids"]) == len(ROWS) + 60
    client.close()
    with pytest.warns(ClipRetrievalWarning, match="killed"):
        store = ChromaStore(folder)
    with store:
        assert store.count() == len(ROWS) + 60
        near = store.search(np.full((1, 4), 9.0), 60)
        assert set(near.ids[0]) == {f"late-{number}" for number in range(60)}
        assert store.get([there["ids"][0]]).vectors[0].tolist() == there["embeddings"][0].tolist()
    assert not mark.exists()


def test_a_kill_before_the_index_is_written_leaves_it(folder: Path) -> None:
    """A request that was to write the index, and had not begun, costs nothing."""
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, "_lowered"], check=False)
    assert killed.returncode == -signal.SIGKILL
    before = changed(folder)
    with ChromaStore(folder) as store:
        assert store.count() == len(ROWS)
    assert changed(folder) == before


def test_the_only_vector_of_a_collection_may_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma does not write a vector that replaces the only one: so small an index is built each time."""
    monkeypatch.setattr(index, "RECORDS", 10)
    with ChromaStore(tmp_path / "data") as store:
        for number in range(20):
            store.upsert(["a"], np.full((1, 4), number), [number])
    with ChromaStore(tmp_path / "data") as store:
        assert store.get(["a"]).vectors.tolist() == [[19.0] * 4]
        ids = fill(store, ROWS)
    with ChromaStore(tmp_path / "data") as store:
        assert store.get(["a"]).vectors.tolist() == [[19.0] * 4]
        assert store.get(ids).vectors.tobytes() == ROWS.tobytes()
    assert not list((tmp_path / "data").glob("*.writing"))


def test_a_log_that_was_cut_is_told_where_it_is_needed(folder: Path) -> None:
    """After `chroma vacuum` has cut the log, the index still gives everything, until it is damaged."""
    log_of(folder, "DELETE FROM embeddings_queue WHERE seq_id < 140")
    with ChromaStore(folder) as store:
        assert store.count() == len(store.get(store._records.ids())) == len(ROWS)
    shorten(files_of(folder) / "header.bin")
    for _ in range(2):
        with pytest.raises(StoreCorruptedError, match="chroma vacuum"):
            ChromaStore(folder)


def test_a_request_that_fails_leaves_the_index_in_doubt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Chroma writes after it failed is not loaded again; what it wrote before is."""
    with ChromaStore(folder) as store:
        collection = store._records._collection
        with monkeypatch.context() as patch:
            patch.setattr(collection, "upsert", lambda **_: (_ for _ in ()).throw(RuntimeError("no space")))
            with pytest.raises(StoreError, match="no space"):
                store.upsert(["b"], np.ones((1, 4)), [1])
        store.upsert(["b"], np.ones((1, 4)), [1])
        twin = shutil.copytree(folder, folder.parent / "twin")
        store.upsert([f"c-{number}" for number in range(60)], np.ones((60, 4)), [1] * 60)
    with pytest.warns(ClipRetrievalWarning, match="built anew"):
        store = ChromaStore(folder)
    with store:
        assert store.count() == len(ROWS) + 61
    with ChromaStore(twin) as store:
        assert store.count() == len(ROWS) + 1


def test_no_other_program_writes_the_index(folder: Path) -> None:
    """A client of the folder answers from the index and its log, and leaves the index as it is."""
    before = changed(folder)
    client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
    with closing(client), ChromaStore(client=client) as other:
        other.upsert([f"d-{number}" for number in range(1200)], np.ones((1200, 4)), [1] * 1200)
        assert other.count() == len(ROWS) + 1200
    assert changed(folder) == before
    assert log_of(folder, "SELECT COUNT(*) FROM embeddings_queue") == (len(ROWS) + 1200,)
    with ChromaStore(folder) as store:
        assert len(store.get(store._records.ids())) == len(ROWS) + 1200
        assert changed(folder) != before


def test_a_folder_made_before_has_its_index_after_one_opening(tmp_path: Path) -> None:
    """Older folders have a log alone, which Chroma would cut as soon as there is an index."""
    with pytest.MonkeyPatch.context() as patch, ChromaStore(tmp_path / "data") as store:
        patch.setattr(index, "RECORDS", index.NEVER)
        ids = fill(store, ROWS)
    log_of(
        tmp_path / "data",
        "UPDATE embeddings_queue_config SET config_json_str = json_set(config_json_str, "
        "'$.automatically_purge', json('true'))",
    )
    for _ in range(2):
        with ChromaStore(tmp_path / "data") as store:
            assert store.get(ids).vectors.tobytes() == ROWS.tobytes()
        assert (files_of(tmp_path / "data") / "index_metadata.pickle").exists()
    assert log_of(tmp_path / "data", "SELECT COUNT(*) FROM embeddings_queue") == (len(ROWS),)
