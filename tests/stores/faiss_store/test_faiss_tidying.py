"""What a flush and `compact` put in order, and that they leave alone what is."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format1_folders import write_format1
from segment_parts import contents, fill, names, normal, seal, segments_of, sizes

from clipretrieval.errors import ClipRetrievalWarning, StoreCorruptedError, StoreUnavailableError
from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.faiss import factory as _factory
from clipretrieval.stores.faiss import keeper as _keeper
from clipretrieval.stores.local import folder_write as _folder_write
from clipretrieval.stores.local import segments as _segments
from clipretrieval.stores.local.held import HeldRecords


def generation_of(folder: Path) -> int:
    content: dict[str, Any] = json.loads((folder / "MANIFEST.json").read_text())
    return int(content["generation"])


@pytest.mark.parametrize(
    ("name", "most"), [("MOST_ROWS", 100), ("MOST_BYTES", 3200), ("MOST_CHARACTERS", 1000)]
)
def test_full_segments_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
    """However many segments hold as much as they may, neither one more vector nor `compact` rewrites them."""
    monkeypatch.setattr(_segments, name, most)
    memory = MemoryStore()
    with FaissStore(tmp_path / "s", index="Flat") as store:
        for each in (store, memory):
            fill(each, 900)
        store.flush()
        full = segments_of(tmp_path / "s")
        assert len(full) >= _segments.TOGETHER + 1
        for place in range(20):
            for each in (store, memory):
                each.upsert([f"new {place}"], normal(place, 1), ["x"])
            store.flush()
            assert segments_of(tmp_path / "s")[: len(full) - 1] == full[:-1]
        store.compact()
        assert segments_of(tmp_path / "s")[: len(full) - 1] == full[:-1]
        there = sizes(tmp_path / "s")
        store.compact()
        assert sizes(tmp_path / "s") == there
        assert contents(store, names(900)) == contents(memory, names(900))


def test_a_record_larger_than_a_segment_has_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata beyond what a segment holds is kept whole, beside others."""
    monkeypatch.setattr(_segments, "MOST_CHARACTERS", 100)
    monkeypatch.setattr(_folder_write, "LEAST_COLUMNS", 3)
    metadata = [{"text": "x" * length} for length in (5, 500, 5, 5, 5, 500, 500, 5)]
    with FaissStore(tmp_path / "s") as store:
        store.upsert(names(8), normal(0, 8), list(range(8)), metadata)
    with FaissStore.load(tmp_path / "s") as store:
        found = store.get(names(8))
        assert found.metadata == metadata
        assert found.labels.tolist() == list(range(8))
        store.verify()
    assert len(segments_of(tmp_path / "s")) == 6


def test_rows_are_read_once_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few fill a segment, what is kept beside them is read once, in ever smaller pieces."""
    monkeypatch.setattr(_segments, "MOST_CHARACTERS", 1000)
    monkeypatch.setattr(_folder_write, "COLUMN_CHARACTERS", 2000)
    read, pieces = HeldRecords.columns, list[int]()

    def reading(held: HeldRecords, rows: Any) -> Any:
        pieces.append(len(rows))
        return read(held, rows)

    monkeypatch.setattr(HeldRecords, "columns", reading)
    with FaissStore(tmp_path / "s") as store:
        store.upsert(names(600), normal(0, 600), [0] * 600, [{"text": "x" * 400}] * 600)
    assert sum(pieces) == 600
    assert pieces[0] == _folder_write.LEAST_COLUMNS
    assert set(pieces[8:]) <= {2, 4, 8}
    assert len(segments_of(tmp_path / "s")) == 300
    assert FaissStore.load(tmp_path / "s").get(names(600)).metadata == [{"text": "x" * 400}] * 600


def test_compact_clears_up_what_an_interrupt_has_left(tmp_path: Path) -> None:
    """With nothing else to do, files that are not in force go."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 10)
        store.flush()
        (tmp_path / "s" / "segment-0-0.bin").write_bytes(b"left")
        store.compact()
        assert set(sizes(tmp_path / "s")) == {"MANIFEST.json", "segment-1-0.bin"}


def test_compact_carries_a_folder_of_format_1_over(tmp_path: Path) -> None:
    """Though nothing has changed."""
    write_format1(tmp_path / "s", names(30), normal(0, 30), ["x"] * 30)
    held = contents(FaissStore.load(tmp_path / "s"), names(30))
    with FaissStore(tmp_path / "s") as store:
        store.compact()
    assert set(sizes(tmp_path / "s")) == {"MANIFEST.json", "segment-2-0.bin"}
    assert contents(FaissStore.load(tmp_path / "s"), names(30)) == held


def test_compact_with_nothing_to_do_writes_nothing(tmp_path: Path) -> None:
    """Readers have nothing to take up then."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 10)
        store.flush()
        reader, before = FaissStore.load(tmp_path / "s"), sizes(tmp_path / "s")
        for _ in range(2):
            store.compact()
        assert not reader.refresh()
        assert sizes(tmp_path / "s") == before
        fill(store, 5, start=10)
        store.compact()
        assert reader.refresh()
        assert reader.count() == 15
        assert len(segments_of(tmp_path / "s")) == 1


@pytest.mark.filterwarnings("ignore:vectors have norms up to")
def test_an_index_that_could_not_be_built_is_not_tried_at_every_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until there are twice as many vectors, flushes write what changed, and nothing where nothing did."""
    monkeypatch.setattr(_factory, "AUTO_LIMIT", 1000)
    rows = normal(0, 3000)
    rows[0] *= 1e19
    store = FaissStore(tmp_path / "s")
    store.upsert(names(1200), rows[:1200], [0] * 1200)
    with pytest.warns(ClipRetrievalWarning, match="until there are twice as many vectors"):
        store.flush()
    before, segments = generation_of(tmp_path / "s"), segments_of(tmp_path / "s")
    store.flush()
    assert generation_of(tmp_path / "s") == before
    store.upsert(["one"], rows[:1], [0])
    store.flush()
    assert generation_of(tmp_path / "s") == before + 1
    assert segments_of(tmp_path / "s")[:-1] == segments
    store.delete(["é0", "one"])
    store.upsert(names(1800, 1200), rows[1200:], [0] * 1800)
    store.close()
    assert FaissStore.load(tmp_path / "s").index_info.factory.startswith("IVF")


@pytest.mark.parametrize("place", [1, 2])
def test_a_compaction_that_fails_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """What was flushed stands, the disk has what it had, and compacting again does it."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 300)
        store.flush()
        store.delete(["é1"])
        if place == 2:  # otherwise nothing is left to flush
            store.flush()
        write, times = _folder_write.write_text, list[int]()

        def writing(*given: Any, **options: Any) -> None:
            times.append(1)
            if len(times) == 3 - place:
                raise OSError(errno.ENOSPC, "full")
            write(*given, **options)

        monkeypatch.setattr(_folder_write, "write_text", writing)
        with pytest.raises(StoreUnavailableError, match=r"Free some space.*, then compact again"):
            store.compact()
        monkeypatch.undo()
        assert segments_of(tmp_path / "s") == ["segment-1-0.bin"]
        assert len(list((tmp_path / "s").glob("segment-*"))) == 1
        assert store.count() == FaissStore.load(tmp_path / "s").count() == 299
        fill(store, 5, start=300)
        store.compact()
    assert len(list((tmp_path / "s").glob("segment-*"))) == len(segments_of(tmp_path / "s")) == 1
    assert FaissStore.load(tmp_path / "s").count() == 304


def test_what_hinders_tidying_hinders_no_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even to find out what is due may fail: the records are safe, and a warning says so."""

    def failing(*_: Any) -> None:
        raise MemoryError("no memory")

    with FaissStore(tmp_path / "s") as store:
        fill(store, 10)
        monkeypatch.setattr(_keeper, "first_to_join", failing)
        with pytest.warns(ClipRetrievalWarning, match="all is flushed, but .* no memory"):
            store.flush()
        assert FaissStore.load(tmp_path / "s").count() == 10
        monkeypatch.undo()


def test_no_flush_has_a_number_that_is_not_read_again(tmp_path: Path) -> None:
    """A manifest that has the last number can be read and copied, and refuses another flush."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 10)
    content = json.loads((tmp_path / "s" / "MANIFEST.json").read_text())
    seal(tmp_path / "s", {**content, "generation": 10**18})
    with pytest.raises(StoreCorruptedError, match="generation must be"):
        FaissStore(tmp_path / "s")
    seal(tmp_path / "s", {**content, "generation": 10**18 - 2})
    store = FaissStore(tmp_path / "s")
    store.upsert(["11"], np.ones((1, 8)), ["x"])
    store.flush()
    assert FaissStore.load(tmp_path / "s").count() == 11
    store.upsert(["12"], np.ones((1, 8)), ["x"])
    with pytest.raises(StoreCorruptedError, match=r"last number that there can be.*save\(path\)"):
        store.flush()
    store.save(tmp_path / "copy")
    assert FaissStore.load(tmp_path / "copy").count() == 12
    content = json.loads((tmp_path / "copy" / "MANIFEST.json").read_text())
    seal(tmp_path / "copy", {**content, "generation": 10**18 - 1})
    with pytest.raises(StoreCorruptedError, match="last number that there can be"):
        store.save(tmp_path / "copy")
    assert FaissStore.load(tmp_path / "copy").count() == 12
    assert FaissStore.load(tmp_path / "s").count() == 11
