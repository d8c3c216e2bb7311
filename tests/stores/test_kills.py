"""A writer is killed at random moments, and the store in a folder has all that was flushed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipretrieval.errors import StoreError
from clipretrieval.stores import create_store
from clipretrieval.testing.kills import GREAT, kill_first_upserts, kill_writers

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")


@pytest.mark.parametrize("store", ["faiss", "chroma"])
def test_kills_lose_nothing_that_was_flushed(tmp_path: Path, store: str) -> None:
    """After each of three kills every flushed id has its vector, label and metadata, and can be found."""
    kills = list(kill_writers(store, {"path": str(tmp_path / "data")}, times=3, seed=1))
    assert [kill.lost for kill in kills] == [[]] * 3
    assert kills[2].flushed >= kills[0].flushed + 3


@pytest.mark.parametrize("store", ["faiss", "chroma"])
def test_a_killed_first_upsert_is_stored_wholly_or_not_at_all(tmp_path: Path, store: str) -> None:
    """Of six processes killed amid the first upsert into an empty store none leaves a part of it."""
    left = list(kill_first_upserts(store, lambda number: {"path": str(tmp_path / str(number))}, times=6))
    assert len(left) == 6
    assert set(left) <= {0, GREAT}


def test_what_is_lost_is_named(tmp_path: Path) -> None:
    """Records that vanish or change between two kills are told by their ids."""
    options = {"path": str(tmp_path / "data")}
    kills = kill_writers("faiss", options, times=2, seed=1)
    assert next(kills).flushed > 0
    with create_store("faiss", **options) as store:
        rows = store.get(["0-0", "0-1", "0-2"]).vectors
        store.delete(["0-0"])
        store.upsert(["0-1", "0-2"], rows[[1, 1]], [7, 0], [{"batch": [0]}] * 2)
    told = next(kills).lost
    assert told[:3] == ["0-0 is missing", "0-1 has another label or metadata", "0-2 has another vector"]
    assert any("0-0 is not found" in each for each in told)


def test_a_writer_that_fails_is_an_error(tmp_path: Path) -> None:
    """A process that cannot fill the store ends the test instead of passing it."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="ended by itself"):
        list(kill_writers("faiss", {"path": str(tmp_path / "file")}, times=1, seed=1))
