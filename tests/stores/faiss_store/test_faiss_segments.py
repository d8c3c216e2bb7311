"""A folder's segments: what a flush writes, how they are joined and cleared, what damage leaves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format1_folders import write_format1
from segment_parts import DIM, bytes_written, contents, fill, named, names, normal, segments_of, sizes
from warm_process import run_warm

from clipretrieval.errors import (
    ClipRetrievalWarning,
    StoreError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.faiss import factory as _factory
from clipretrieval.stores.faiss import keeper as _keeper
from clipretrieval.stores.local import segment as _segment
from clipretrieval.stores.local import segments as _segments


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks and segments small, so that a few records lie in many."""
    for module, name, value in (
        (_segment, "BLOCK", 64),
        (_segments, "TOGETHER", 2),
        (_segments, "MOST_ROWS", 16),
        (_keeper, "SEALED_VALUES", 20 * DIM),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build indexes from the first vectors on."""
    monkeypatch.setattr(_factory, "SMALLEST", 4)
    monkeypatch.setattr(_factory, "CENTROID_LEAST", 4)


def test_a_flush_writes_what_changed_however_much_there_is(tmp_path: Path) -> None:
    """One vector more takes as many bytes beside 4,000 as beside 200, one less hardly more."""
    written = []
    for count in (200, 4000):
        with FaissStore(tmp_path / str(count), index="Flat") as store:
            fill(store, count)
            store.flush()

            def add(store: FaissStore = store) -> None:
                store.upsert(["one"], normal(1, 1), ["x"])
                store.flush()

            def drop(store: FaissStore = store) -> None:
                store.delete(["é7"])
                store.flush()

            written.append([bytes_written(tmp_path / str(count), each) for each in (add, drop)])
    more = np.diff(written, axis=0)[0] - [0, 3800 // 8]  # a bit for each row tells what was removed
    assert np.abs(more).max() < 20  # digits in the manifest
    assert max(written[1]) < 3000


def test_many_flushes_leave_few_segments_and_write_little(tmp_path: Path) -> None:
    """A hundred flushes of one vector leave few files, and write each vector a few times."""
    store, memory, total = FaissStore(tmp_path / "s"), MemoryStore(), 0
    for place in range(100):
        for each in (store, memory):
            each.upsert([f"é{place}"], normal(place, 1), [place])
        before = sizes(tmp_path / "s")
        store.flush()
        total += sum(size for name, size in sizes(tmp_path / "s").items() if name not in before)
        assert len(segments_of(tmp_path / "s")) <= 3 * (_segments.TOGETHER - 1) + 1
    one = 512 + 64 * 10  # parts begin at multiples of 64 bytes
    assert total < 100 * one * 4
    store.close()
    assert contents(FaissStore.load(tmp_path / "s"), names(100)) == contents(memory, names(100))


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize(("kind", "metric"), [(str, "l2"), (int, "ip")])
@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_writes_and_flushes_is_answered_as_in_memory(
    tmp_path: Path, seed: int, kind: type, metric: str
) -> None:
    """Upserts, deletions, flushes, compactions, reopenings and copies, in any order, change no answer."""
    rng, memory = np.random.default_rng(seed), MemoryStore(metric)
    store, reader = FaissStore(tmp_path / "s", metric=metric), None
    for step in range(30):
        verb = rng.choice(["upsert", "upsert", "delete", "flush", "compact", "reopen", "copy", "refresh"])
        chosen = [f"é{place}" for place in rng.choice(60, rng.integers(1, 25), replace=False)]
        if verb == "upsert":
            labels = [kind(place) for place in rng.integers(0, 3, len(chosen))]
            metadata = [{"step": step}] * len(chosen)
            for each in (store, memory):
                each.upsert(chosen, normal(step, len(chosen)), labels, metadata)
        elif verb == "delete":
            assert store.delete(chosen) == memory.delete(chosen)
        elif verb == "flush":
            store.flush()
        elif verb == "compact":
            store.compact()
            assert "removed" not in json.loads((tmp_path / "s" / "MANIFEST.json").read_text())["files"]
        elif verb == "reopen":
            store.close()
            store = FaissStore(tmp_path / "s", metric=metric)
        elif verb == "copy":
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            store.save(tmp_path / "copy")
            with FaissStore.load(tmp_path / "copy") as copy:
                assert contents(copy, names(60)) == contents(memory, names(60))
        else:
            store.flush()
            reader = FaissStore.load(tmp_path / "s") if reader is None else reader
            reader.refresh()
            assert contents(reader, names(60)) == contents(memory, names(60))
            reader.verify()
        assert contents(store, names(60)) == contents(memory, names(60)), f"after {verb}, step {step}"
    store.leave_when_written()
    store.close()


@pytest.mark.usefixtures("tight", "small")
@pytest.mark.parametrize("index", ["IVF2,Flat", "IVF2,SQ8", "HNSW8", "SQfp16", "PCA4,IVF2,Flat"])
def test_an_index_follows_any_sequence_of_flushes(tmp_path: Path, index: str) -> None:
    """Hits are stored, as many as asked for, none twice, at true distances, whatever came and went."""
    rng, memory = np.random.default_rng(3), MemoryStore()
    store = FaissStore(tmp_path / "s", index=index, recall=0.01)
    for each in (store, memory):
        fill(each, 60)
    for step in range(25):
        verb = rng.choice(["upsert", "delete", "flush", "compact", "reopen"], p=[0.35, 0.25, 0.2, 0.05, 0.15])
        chosen = [f"é{place}" for place in rng.choice(120, rng.integers(1, 12), replace=False)]
        if verb == "upsert":
            for each in (store, memory):
                each.upsert(chosen, normal(step, len(chosen)), ["x"] * len(chosen))
        elif verb == "delete":
            assert store.delete(chosen) == memory.delete(chosen)
        elif verb == "reopen":
            store.close()
            store = FaissStore(tmp_path / "s")
        else:
            (store.flush if verb == "flush" else store.compact)()
            assert store.index_info.factory == index
            store.verify()
        queries, k = normal(step + 1, 3), int(rng.integers(1, 9))
        near, everything = store.search(queries, k), memory.search(queries, memory.count())
        assert near.valid.sum(axis=1).tolist() == [min(k, memory.count())] * 3
        for row in range(3):
            known = dict(zip(everything.ids[row], everything.distances[row], strict=True))
            found = near.ids[row][near.valid[row]].tolist()
            assert len(set(found)) == len(found)
            assert near.distances[row][near.valid[row]].tolist() == [known[name] for name in found]
    store.close()


@pytest.mark.parametrize("index", ["IVF16,SQ8", "HNSW16"])
def test_an_index_stays_while_little_comes_and_goes(tmp_path: Path, index: str) -> None:
    """Its file is the same after small flushes, which are found exactly; many vectors are written into it."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((40, 16))
    rows = (centres[np.arange(4000) % 40] + rng.standard_normal((4000, 16))).astype(np.float32)
    ids = [str(place) for place in range(4000)]
    with FaissStore(tmp_path / "s", index=index) as store:
        store.upsert(ids[:2500], rows[:2500], [0] * 2500)
        store.flush()
        (path,) = (tmp_path / "s").glob("ann-*.faiss")
        before = path.read_bytes()
        for place in range(2500, 2560, 20):
            store.upsert(ids[place : place + 20], rows[place : place + 20], [1] * 20)
            store.delete(ids[place - 2500 : place - 2500 + 5])
            store.flush()
        assert path.read_bytes() == before
        assert store.search(rows[2500:2560], 1).ids[:, 0].tolist() == ids[2500:2560]
        assert not set(store.search(rows[:45], 5).ids.ravel()) & {*ids[:5], *ids[20:25], *ids[40:45]}
        info = store.index_info
        assert (info.outliers >= 60, info.tombstones, info.measured_on) == (True, 15, 2500)
        store.upsert(ids[2560:], rows[2560:], [2] * 1440)
        store.flush()
        assert not path.exists()
        info = store.index_info
        assert info.outliers < 300
        assert info.measured_on == 3985
    with FaissStore.load(tmp_path / "s") as store:
        assert store.index_info == info
        found = store.search(rows[60::50], 1).ids[:, 0].tolist()
        assert np.mean([left == right for left, right in zip(found, ids[60::50], strict=True)]) > 0.95


@pytest.mark.parametrize("index", ["HNSW8", "IVF16,SQ8"])
def test_an_index_is_extended_after_a_compaction_that_moves_rows(tmp_path: Path, index: str) -> None:
    """What was written last before is not looked up by the numbers that it had."""
    rows = normal(0, 9310)
    ids = [str(place) for place in range(len(rows))]
    with FaissStore(tmp_path / "s", index=index, recall=0.5) as store:
        for start, stop in ((0, 8000), (8000, 9300)):
            store.upsert(ids[start:stop], rows[start:stop], [1] * (stop - start))
            store.flush()
        store.delete(ids[:2100])
        store.upsert(ids[9300:], rows[9300:], [1] * 10)
        store.flush()
        assert (store.index_info.factory, store.index_info.measured_on) == (index, 7210)
    with FaissStore.load(tmp_path / "s") as store:
        assert store.search(rows[9000:], 1).ids[:, 0].tolist() == ids[9000:]
        store.verify()


@pytest.mark.usefixtures("tight")
def test_a_store_that_was_emptied_takes_labels_of_another_type(tmp_path: Path) -> None:
    """Records that were removed bind nobody, flushed or not."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 30)
        store.flush()
        store.delete(names(30))
        fill(store, 25, label=7)
        assert store.get(["é3"]).labels.tolist() == [7]
        store.flush()
        assert len(segments_of(tmp_path / "s")) == 2
    with FaissStore.load(tmp_path / "s") as store:
        assert {label for each in store.scan(7) for label in each.labels.tolist()} == {7}
        assert list(store.scan("7")) == []


def test_more_than_half_removed_is_cleared_by_a_flush(tmp_path: Path) -> None:
    """Segments are written anew without what was removed; a reader that has mapped them goes on."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 100)
        store.flush()
        fill(store, 50, start=100)
        store.flush()
        reader = FaissStore.load(tmp_path / "s")
        store.delete(names(70))
        store.flush()
        assert segments_of(tmp_path / "s") == ["segment-1-0.bin", "segment-2-0.bin"]
        store.delete(names(10, 70))
        store.flush()
        assert segments_of(tmp_path / "s") == ["segment-5-0.bin", "segment-2-0.bin"]
        assert reader.get(names(150)).ids.tolist() == names(150)
        assert reader.refresh()
        assert reader.get(names(150)).ids.tolist() == names(70, 80)
        store.compact()
        assert segments_of(tmp_path / "s") == ["segment-6-0.bin"]


def test_compact_is_for_who_may_write(tmp_path: Path) -> None:
    """A read-only store refuses, a closed one too, and one in memory has nothing to do."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 10)
    reader = FaissStore.load(tmp_path / "s")
    with pytest.raises(UnsupportedOperationError, match="read-only"):
        reader.compact()
    for call in (store.compact, store.verify):
        with pytest.raises(StoreError, match="closed"):
            call()
    with FaissStore() as memory:
        fill(memory, 10)
        memory.compact()
        memory.verify()
        assert memory.count() == 10


@pytest.mark.parametrize("step", ["compact", "flush"])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_disk_that_fills_leaves_the_last_flush(
    tmp_path: Path, step: str, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file cannot be put in place, the folder opens as it was, and the step can be done again."""
    folder = tmp_path / "s"
    with FaissStore(folder) as store:
        for start in (0, 50):
            fill(store, 50, start=start)
            store.flush()
        store.delete(names(20))
        store.flush()
        before = contents(FaissStore.load(folder), names(300))
        fill(store, 10, start=200)
        store.delete(["é30"])
        after, replace, replaced = contents(store, names(300)), os.replace, []

        def failing(source: Any, target: Any) -> None:
            replaced.append(target)
            if len(replaced) == last:
                raise OSError(28, "No space left on device")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            with pytest.raises(StoreUnavailableError, match="flushed before is intact"):
                getattr(store, step)()
        assert contents(FaissStore.load(folder), names(300)) == before
        assert contents(store, names(300)) == after
        getattr(store, step)()
    assert contents(FaissStore.load(folder), names(300)) == after
    assert {*sizes(folder)} == named(folder)


@pytest.mark.parametrize("index", ["Flat", "IVF16,Flat"])
def test_a_flush_does_not_need_the_space_to_tidy(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is removed is durable where nothing can be written anew; the user is warned once."""
    rows, folder = normal(0, 2000), tmp_path / "s"
    with FaissStore(folder, index=index, recall=0.5) as store:
        store.upsert(names(2000), rows, [1] * 2000)
        store.flush()
        store.delete(names(1200))
        replace = os.replace

        def failing(source: Any, target: Any) -> None:
            if Path(target).name.startswith(("segment", "ann")):
                raise OSError(28, "No space left on device")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            with pytest.warns(ClipRetrievalWarning, match="all is flushed, but"):
                store.flush()
            store.write_manifest({"a": 1})
            store.flush()
            with pytest.raises(StoreUnavailableError, match="No space left"):
                store.compact()
        assert FaissStore.load(folder).count() == store.count() == 800
        store.compact()
        assert store.search(rows[1900:], 1).ids[:, 0].tolist() == names(100, 1900)
        assert {*sizes(folder)} == named(folder)


@pytest.mark.usefixtures("tight")
def test_what_is_written_ahead_of_a_flush_is_not_in_force(tmp_path: Path) -> None:
    """Records that no longer fit the memory lie in the folder, and belong to nobody else until the flush."""
    store = FaissStore(tmp_path / "s")
    fill(store, 10, start=100)
    store.flush()
    fill(store, 40)
    ahead = {path.name for path in (tmp_path / "s").glob("segment-2-*.bin")}
    assert ahead
    assert FaissStore.load(tmp_path / "s").count() == 10
    store.delete(names(3))
    fill(store, 3, start=4, seed=5)
    assert {path.name for path in (tmp_path / "s").glob("segment-2-*.bin")} == ahead
    found = contents(store, names(150))
    store.flush()
    assert contents(store, names(150)) == found
    assert contents(FaissStore.load(tmp_path / "s"), names(150)) == found
    store.close()


def test_labels_and_ids_may_be_anything(tmp_path: Path) -> None:
    """Odd characters, empty labels and long texts come back as they were given."""
    ids = ["\0", "a\0b", "'; --", "🐈" * 50, "é", "e\u0301", " ", "\n"]
    labels = ["", "\0", '"', "\\", "é", "🐈", "[]", "null"]
    metadata = [{"text": label * 100, "": None} for label in labels]
    with FaissStore(tmp_path / "s") as store:
        store.upsert(ids, normal(0, 8), labels, metadata)
    with FaissStore.load(tmp_path / "s") as store:
        records = store.get(ids)
        assert (records.ids.tolist(), records.labels.tolist(), records.metadata) == (ids, labels, metadata)
        assert [name for each in store.scan("") for name in each.ids] == ["\0"]
        store.verify()


# Does to a folder what its first argument says, and is killed at the step of that number: a step is each time
# that a file is synced, put in place or removed. Tells how many steps there are when it is not killed.
KILLED = """
import os, signal, sys
import numpy as np
from clipretrieval.stores import FaissStore

folder, what, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
steps = 0

def killing(function):
    def call(*arguments, **options):
        global steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

with FaissStore(folder) as store:
    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, killing(getattr(os, name)))
    if what == "carry-over":
        store.upsert(["new"], np.ones((1, 8)), ["x"])
        store.flush()
    elif what == "compact":
        store.compact()
    else:
        store.upsert(["new"], np.ones((1, 8)), ["x"])
        store.flush()
print(steps)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("what", ["carry-over", "compact", "join"])
def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path, what: str) -> None:
    """Killed at any step of a compaction, a flush that joins segments, or the first to a format-1 folder."""
    first = tmp_path / "first"
    if what == "carry-over":
        write_format1(first, names(30), normal(0, 30), ["x"] * 30, user={"a": 1}, blobs={"b": b"x"})
    else:
        with FaissStore(first) as store:
            for start in range(9 if what == "join" else 3):
                fill(store, 5, start=5 * start)
                if start < 6:
                    store.flush()
                store.write_manifest({"a": 1})
                store.write_blob("b", b"x")
            store.delete(names(4))
    before = contents(FaissStore.load(first), [*names(60), "new"])
    memory = MemoryStore()
    records = FaissStore.load(first).get(names(60))
    memory.upsert(records.ids.tolist(), records.vectors, records.labels, records.metadata)
    if what != "compact":
        memory.upsert(["new"], np.ones((1, DIM)), ["x"])
    after = contents(memory, [*names(60), "new"])

    def killed_at(step: int) -> Any:
        shutil.copytree(first, tmp_path / str(step))
        return run_warm(["-c", KILLED, tmp_path / str(step), what, step])

    whole = killed_at(0)
    assert whole.returncode == 0, whole.stderr
    steps, seen = int(whole.stdout), []
    for step in sorted({*range(1, steps + 1, 2), steps}):
        done = killed_at(step)
        assert done.returncode == -9, done.stderr
        with FaissStore.load(tmp_path / str(step)) as store:
            found = contents(store, [*names(60), "new"])
            assert found in (before, after)
            assert (store.read_manifest(), store.read_blob("b")) == ({"a": 1}, b"x")
            seen.append(found == after)
        with FaissStore(tmp_path / str(step)) as store:  # the next writer clears up
            store.upsert(["more"], np.ones((1, DIM)), ["x"])
        assert {*sizes(tmp_path / str(step))} == named(tmp_path / str(step))
    assert seen == sorted(seen)
    assert len(seen) > 4
    assert len(segments_of(tmp_path / "0")) == 1


def test_a_folder_of_format_1_is_carried_over_by_the_first_flush(tmp_path: Path) -> None:
    """It opens as it was; the first flush of a change puts segments in its files' place, and answers stay."""
    for metric in ("l2", "cosine", "ip"):
        folder = tmp_path / metric
        write_format1(folder, names(30), normal(0, 30), list(range(30)), metric=metric, blobs={"b": b"x"})
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with FaissStore.load(folder) as store:
            held = contents(store, names(60))
            assert store.get(["é3"]).metadata == [{"place": 3}]
        with FaissStore(folder, metric=metric) as store:
            assert contents(store, names(60)) == held
            store.flush()
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "LOCK"} == before
        with FaissStore(folder, metric=metric) as store:
            store.write_manifest({"changed": True})
        assert sorted(sizes(folder)) == ["MANIFEST.json", "blob-b-1.bin", "segment-2-0.bin"]
        with FaissStore.load(folder) as store:
            assert contents(store, names(60)) == held
            assert (store.read_manifest(), store.read_blob("b")) == ({"changed": True}, b"x")
            store.verify()


def test_a_copy_of_a_memory_store_of_format_1_opens(tmp_path: Path) -> None:
    """What an older version saved is loaded, and saved again in the present format."""
    write_format1(tmp_path / "old", names(20), normal(0, 20), ["x"] * 20, kind="MemoryStore")
    store = MemoryStore.load(tmp_path / "old")
    assert store.get(names(20)).vectors.tolist() == normal(0, 20).tolist()
    store.save(tmp_path / "old")
    assert sorted(sizes(tmp_path / "old")) == ["MANIFEST.json", "segment-2-0.bin"]
    assert contents(MemoryStore.load(tmp_path / "old"), names(20)) == contents(store, names(20))
