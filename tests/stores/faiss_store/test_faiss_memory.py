"""`memory=` chooses the index by what it takes: the finest codes that fit, and none where none do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from segment_parts import seal
from sklearn.base import clone

from clipretrieval import ClipRetrievalWarning, InvalidInputError
from clipretrieval.stores import FaissStore
from clipretrieval.stores.faiss import factory, memory_budget
from clipretrieval.stores.faiss.factory import auto_factory
from clipretrieval.stores.faiss.memory_budget import OWN_BYTES, MemoryBudget, check_memory

COUNT, DIM = 6000, 32


@pytest.fixture
def small(monkeypatch):
    """What "auto" does beyond 100,000 vectors, beyond a thousand."""
    monkeypatch.setattr(factory, "AUTO_LIMIT", 1000)
    monkeypatch.setattr(factory, "FEWEST_LISTS", 4)
    monkeypatch.setattr(memory_budget, "_COPIES", 0)  # training decides, where there are few vectors


def filled(path, count=COUNT, **options):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, DIM))[rng.integers(0, 20, count)] + 0.3 * rng.standard_normal(
        (count, DIM)
    )
    store = FaissStore(path, **options)
    store.upsert([f"{row}" for row in range(count)], rows.astype(np.float32), list(range(count)))
    store.flush()
    return store, rows.astype(np.float32)


def test_sizes():
    assert check_memory("4 GB") == check_memory(4 * 10**9) == 4 * 10**9
    assert check_memory(" 1.5gib ") == 3 << 29
    assert check_memory(np.int64(4 * 10**9)) == 4 * 10**9
    for wrong in ("4 gigs", "", "-1 GB", True, 1.5e9, None, b"4 GB", "1 GB 2", 1 << 60):
        with pytest.raises(InvalidInputError, match="memory must be an int of bytes up to"):
            check_memory(wrong)
    with pytest.raises(InvalidInputError, match="less than the 600 MB that a store takes"):
        check_memory("10 MB")


def test_no_index_gets_round_the_least(tmp_path):
    """What the store calls an index within some memory is as little as `memory=` may be, or refused."""
    with pytest.raises(InvalidInputError, match="less than the 600 MB"):
        FaissStore(tmp_path / "store", index="auto,1")
    with pytest.raises(InvalidInputError, match="needs a path"):
        FaissStore(index=f"auto,{OWN_BYTES}")
    with FaissStore(tmp_path / "store", memory=OWN_BYTES) as store:
        options = store.location()
    assert options["index"] == f"auto,{OWN_BYTES}"
    FaissStore(**options).close()
    FaissStore(**options, read_only=True).close()
    content = json.loads((tmp_path / "store" / "MANIFEST.json").read_text())
    seal(tmp_path / "store", {**content, "index": "auto,1000"})  # which earlier versions took
    FaissStore(tmp_path / "store").close()


def test_a_clone_of_a_store_that_left_its_folder_is_in_memory(tmp_path):
    """How much memory a folder's store may take is nothing to it."""
    store, rows = filled(tmp_path / "store", memory=OWN_BYTES)
    store.leave_when_written()
    store.upsert(["more"], rows[:1], [0])
    empty = clone(store)
    empty.upsert(["more"], rows[:1], [0])
    assert (empty.count(), empty.location()) == (1, None)


def test_the_finest_codes_that_fit():
    """Ten million vectors of 256 dimensions: with less memory, coarser codes; then fewer lists."""
    chosen = [
        auto_factory(10**7, 256, f"auto,{gigabytes}00000000") for gigabytes in (60, 40, 30, 20, 12, 9, 5)
    ]
    codes = [None if each is None else each.split(",")[1] for each in chosen]
    assert codes == ["SQ8", "SQ6", "SQ4", "PQ64", "PQ16", "PQ8", None]
    assert auto_factory(10**7, 256) == "IVF16384,SQ8" == chosen[0]
    assert auto_factory(100_000, 256, "auto,900000000") is None
    lists = [int(each.split(",")[0][3:]) for each in chosen if each]
    assert lists == sorted(lists, reverse=True)
    assert lists[-1] < lists[0]


@pytest.mark.parametrize("dim", [1, 3, 32, 100])
def test_less_memory_never_needs_more(dim):
    budget = MemoryBudget(10**9, dim)
    taken = [budget.least(10**6, 1024, codes) for codes in list(budget.codes)[:3]]
    assert taken == sorted(taken, reverse=True)


def test_a_store_keeps_within_its_memory(small, tmp_path):
    """The folder keeps what was asked for, and a bound that is raised or lowered decides the next index."""
    held = MemoryBudget(0, DIM).least(COUNT, 256, "SQ4") - OWN_BYTES
    tight = OWN_BYTES + held + 1000
    store, rows = filled(tmp_path / "store", memory=tight)
    with store:
        assert store.index_info.factory.endswith(",SQ4")
        assert store.index_info.recall >= 0.99
        assert store.location()["index"] == f"auto,{tight}"
        near = store.search(rows[:50], k=3)
        assert near.ids[:, 0].tolist() == [f"{row}" for row in range(50)]
    with FaissStore(tmp_path / "store") as store:
        store.upsert(["more"], rows[:1] + 1, [0])
    with FaissStore(tmp_path / "store", read_only=True) as store:
        assert store.index_info.factory.endswith(",SQ4")
        assert store.count() == COUNT + 1


def test_a_store_that_outgrows_its_memory_takes_coarser_codes(small, tmp_path):
    budget = MemoryBudget(0, DIM)
    size = budget.least(COUNT, 256, "SQ8") + 1000
    store, rows = filled(tmp_path / "store", memory=size)
    with store:
        assert store.index_info.factory.endswith(",SQ8")
        store.upsert([f"more {row}" for row in range(2000)], rows[:2000] + 0.01, list(range(2000)))
        store.flush()
        assert store.index_info.factory.endswith((",SQ6", ",SQ4"))
        assert store.search(rows[:5], k=1).labels.tolist() == [[0], [1], [2], [3], [4]]


def test_too_little_for_any_index(small, tmp_path):
    """Searches are exact, and a warning says what it would take."""
    with pytest.warns(
        ClipRetrievalWarning, match=r"600 MB .* too little for an index of 6,000 vectors of 32 dim"
    ) as told:
        store, rows = filled(tmp_path / "store", memory=OWN_BYTES)
    enough = str(told[0].message).split('memory="')[1].split('"')[0]
    with store:
        assert store.index_info.factory == "Flat"
        assert store.search(rows[:3], k=1).ids.tolist() == [["0"], ["1"], ["2"]]
    with FaissStore(tmp_path / "store", memory=enough) as store:
        store.flush()
        assert store.index_info.factory.startswith("IVF")
    with FaissStore(tmp_path / "store", memory="4 GB") as store:
        store.flush()
        assert store.index_info.factory.endswith(",SQ8")


def test_what_memory_does_not_go_with(tmp_path):
    with pytest.raises(InvalidInputError, match="memory= needs a path"):
        FaissStore(memory="4 GB")
    with pytest.raises(InvalidInputError, match="memory= chooses the index; leave index='Flat' out"):
        FaissStore(tmp_path / "store", index="Flat", memory="4 GB")
    FaissStore(tmp_path / "store").close()
    with pytest.raises(InvalidInputError, match="leave it out where the store is read_only"):
        FaissStore(tmp_path / "store", read_only=True, memory="4 GB")
    assert not (tmp_path / "other").exists()
