"""ChromaStore with a second owner, a server that is down, damaged files, or no chromadb."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chroma_parts import fill, normal
from chroma_server import chroma_server
from warm_process import run_warm

from clipretrieval.errors import StoreCorruptedError, StoreLockedError, StoreUnavailableError
from clipretrieval.stores import ChromaStore


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    return run_warm(["-c", script, *arguments])


def test_a_second_owner_is_locked_out(tmp_path: Path) -> None:
    """While a store holds a folder no other does, however the path is spelt, here or in another process."""
    opening = "import sys; from clipretrieval.stores import ChromaStore; ChromaStore(sys.argv[1]).close()"
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with ChromaStore(tmp_path / "data") as store:
        store.upsert(["a"], np.ones((1, 2)), [1])
        for path in (tmp_path / "data", tmp_path / "link", f"{tmp_path}/x/../data/"):
            with pytest.raises(StoreLockedError, match="another store"):
                ChromaStore(path)
        done = run(opening, tmp_path / "data")
        assert done.returncode != 0
        assert "StoreLockedError" in done.stderr
        assert store.count() == 1
    done = run(opening, tmp_path / "data")
    assert done.returncode == 0, done.stderr


def test_without_chromadb_the_error_says_what_to_install() -> None:
    """Where chromadb is not installed the error is MissingDependencyError with the pip command."""
    hidden = "import sys; sys.modules['chromadb'] = None; from clipretrieval.stores import create_store; "
    command = [sys.executable, "-c", hidden + "create_store('chroma')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "MissingDependencyError" in done.stderr
    assert 'pip install "clipretrieval[chroma]"' in done.stderr


def test_a_server_that_is_down_is_unavailable(tmp_path: Path) -> None:
    """Every verb says that the server cannot be reached; restarted, it has all that was written."""
    with chroma_server(tmp_path / "data") as (process, port):
        store = ChromaStore(host="127.0.0.1", port=port)
        store.upsert(["a"], np.ones((1, 2)), [1])
        store.write_manifest({"a": 1})
        store.flush()
        process.kill()
        process.wait()
        one = np.ones((1, 2))
        calls: list[Callable[[], Any]] = [
            lambda: store.upsert(["b"], one, [1]),
            lambda: store.search(one, 1),
            lambda: store.get(["a"]),
            lambda: store.delete(["a"]),
            store.count,
            store.read_manifest,
            lambda: store.write_manifest({}),
            lambda: ChromaStore(host="127.0.0.1", port=port),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailableError, match=f"127.0.0.1:{port}"):
                call()
        store.close()
    with chroma_server(tmp_path / "data") as (_, port), ChromaStore(host="127.0.0.1", port=port) as again:
        assert again.get(["a"]).vectors.tolist() == [[1, 1]]
        assert again.read_manifest() == {"a": 1}


def garble(file: Path) -> None:
    file.write_bytes(b"x" * file.stat().st_size)


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [garble, shorten])
def test_a_damaged_database_is_reported(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A database that is not whole is StoreCorruptedError, and the folder is not left locked."""
    with ChromaStore(tmp_path / "data") as store:
        fill(store, normal(0, 50, 8))
    damage(tmp_path / "data" / "chroma.sqlite3")
    for _ in range(2):
        with pytest.raises(StoreCorruptedError, match="damaged"):
            ChromaStore(tmp_path / "data")


def test_the_index_files_hold_nothing(tmp_path: Path) -> None:
    """Chroma's index folder may vanish: the database alone gives every vector back."""
    rows = normal(0, 500, 8)
    with ChromaStore(tmp_path / "data") as store:
        ids = fill(store, rows)
    for folder in (tmp_path / "data").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    with ChromaStore(tmp_path / "data") as store:
        assert store.get(ids).vectors.tobytes() == rows.tobytes()
