"""Folders of which something is missing or damaged: it is named, and the rest goes on."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_parts import DIM, contents, fill, named, names, normal, sizes

from clipretrieval.errors import (
    ClipRetrievalWarning,
    StoreCorruptedError,
    StoreUnavailableError,
)
from clipretrieval.stores import FaissStore
from clipretrieval.stores.faiss import covering as _covering
from clipretrieval.stores.faiss import keeper as _keeper
from clipretrieval.stores.local import folder_manifest as _manifest
from clipretrieval.stores.local import segment as _segment
from clipretrieval.stores.local import store_folder as _store_folder


class TestDamage:
    """A segment that is not as it was written is named to whoever needs it; all others can be read."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Three segments, of which the second is damaged in the vector of é110."""
        path = tmp_path / "s"
        with FaissStore(path, index="Flat") as store:
            for start in (0, 100, 200):
                fill(store, 100, start=start, seed=start)
                store.flush()
        damaged = path / "segment-2-0.bin"
        content = bytearray(damaged.read_bytes())
        content[10 * 4 * DIM] ^= 1
        damaged.write_bytes(content)
        return path

    def test_the_rest_can_be_read(self, folder: Path) -> None:
        """Look-ups and scans of the others go on; searches, which compare all, and `verify` name the file."""
        with FaissStore(folder, read_only=True) as store:
            assert store.get(names(100)).vectors.tolist() == normal(0, 100).tolist()
            assert store.get(names(100, 200)).vectors.tolist() == normal(200, 100).tolist()
            assert sorted(name for each in store.scan() for name in each.ids) == sorted(names(300))
            asks: list[Callable[[], Any]] = [
                lambda: store.get(["é110"]),
                lambda: store.search(normal(0, 1), 1),
                store.verify,
            ]
            for ask in asks:
                with pytest.raises(StoreCorruptedError, match=r"segment-2-0.bin is damaged: its vectors do"):
                    ask()

    def test_a_damaged_list_of_ids_hides_no_others(self, folder: Path) -> None:
        """A scan lists what it can read, and tells at its end what it could not."""
        path = folder / "segment-3-0.bin"
        content = path.read_bytes()
        path.write_bytes(content.replace("é250".encode(), "é25x".encode()))
        listed: list[str] = []
        with FaissStore(folder, read_only=True) as store:
            listing = store.scan()
            with pytest.raises(StoreCorruptedError, match=r"segment-3-0.bin is damaged: its ids do not"):
                listed.extend(name for each in listing for name in each.ids.tolist())
            assert sorted(listed) == sorted(names(200))

    def test_a_writer_goes_on_beside_it(self, folder: Path) -> None:
        """New records are flushed, and the damage stays where it is and is told."""
        with FaissStore(folder) as store:
            fill(store, 5, start=500)
            store.delete(["é110"])
            store.flush()
            assert store.get(names(5, 500)).ids.tolist() == names(5, 500)
            with pytest.raises(StoreCorruptedError, match=r"segment-2-0.bin"):
                store.compact()
        with FaissStore(folder, read_only=True) as store:
            assert store.count() == 304
            with pytest.raises(StoreCorruptedError, match=r"segment-2-0.bin"):
                store.verify()


@pytest.mark.parametrize("how", ["missing", "cut", "another size"])
def test_a_segment_that_is_gone_leaves_the_others(tmp_path: Path, how: str) -> None:
    """Its name is told to whoever needs it, and at opening to who would write; the others can be read."""
    folder = tmp_path / "s"
    with FaissStore(folder, index="Flat") as store:
        for start in (0, 100, 200):
            fill(store, 100, start=start, seed=start)
            store.flush()
    path = folder / "segment-2-0.bin"
    if how == "missing":
        path.unlink()
    else:
        os.truncate(path, 100 if how == "cut" else path.stat().st_size + 1)
    left, listed = [*names(100), *names(100, 200)], list[str]()
    with FaissStore.load(folder) as reader:
        with pytest.raises(StoreCorruptedError, match=r"segment-2-0.bin is damaged: it (is missing|has)"):
            listed.extend(name for each in reader.scan() for name in each.ids.tolist())
        listed = _ids_of(reader)
        assert sorted(listed) == sorted(left)
        assert reader.get(left).vectors.tolist() == [*normal(0, 100).tolist(), *normal(200, 100).tolist()]
        asks: list[Callable[[], object]] = [
            lambda: reader.get(["é110"]),
            lambda: reader.search(normal(0, 1), 1),
            lambda: reader.save(tmp_path / "copy"),
            reader.verify,
        ]
        for ask in asks:
            with pytest.raises(StoreCorruptedError, match=r"segment-2-0.bin"):
                ask()
    with pytest.raises(StoreCorruptedError, match=r"segment-2-0.bin is damaged: it (is missing|has)"):
        FaissStore(folder)


def test_no_flush_names_a_file_that_is_gone(tmp_path: Path) -> None:
    """A segment that was lost while the store is open is told of before the manifest is replaced."""
    store = FaissStore(tmp_path / "s", index="Flat")
    fill(store, 30)
    store.flush()
    (tmp_path / "s" / "segment-1-0.bin").rename(tmp_path / "gone")
    before = (tmp_path / "s" / "MANIFEST.json").read_bytes()
    fill(store, 5, start=100)
    with pytest.raises(StoreCorruptedError, match=r"segment-1-0.bin is missing, or was cut .*save\(path\)"):
        store.flush()
    with pytest.raises(StoreCorruptedError, match=r"segment-1-0.bin is damaged: it is missing, or"):
        store.verify()
    store.save(tmp_path / "copy")
    assert FaissStore.load(tmp_path / "copy").count() == 35
    assert (tmp_path / "s" / "MANIFEST.json").read_bytes() == before
    (tmp_path / "gone").rename(tmp_path / "s" / "segment-1-0.bin")
    store.close()
    assert FaissStore.load(tmp_path / "s").count() == 35


def test_each_kind_of_damage_has_its_remedy(tmp_path: Path) -> None:
    """A damaged index is built anew, a lost segment leaves the others, which a new store can take."""
    rows = normal(0, 1200)
    with FaissStore(tmp_path / "s", index="IVF4,Flat", recall=0.5) as store:
        store.upsert(names(1200), rows, [0] * 1200)
        store.flush()
        store.upsert(["new"], rows[:1], [0])
    index = tmp_path / "s" / "ann-1-0.faiss"
    kept = index.read_bytes()
    index.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    told = r"ann-1-0.faiss .*No vector is lost.*builds the index"
    with FaissStore.load(tmp_path / "s") as store, pytest.raises(StoreCorruptedError, match=told):
        store.verify()
    index.write_bytes(kept)
    (tmp_path / "s" / "segment-1-0.bin").unlink()
    with FaissStore.load(tmp_path / "s") as store:
        with pytest.raises(StoreCorruptedError, match="or open it with read_only=True and put what is left"):
            store.get(["é1"])
        assert store.get(["new"]).ids.tolist() == ["new"]


def test_what_a_reader_is_told_of_a_segment_is_what_is_wrong_now(tmp_path: Path) -> None:
    """One that was missing, and is there again but cut off, is said to be cut off."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 30)
    path = tmp_path / "s" / "segment-1-0.bin"
    content = path.read_bytes()
    path.unlink()
    before = FaissStore.load(tmp_path / "s")
    path.write_bytes(content[:100])
    with pytest.raises(StoreCorruptedError, match="it is missing"):
        before.get(["é1"])
    with pytest.raises(StoreCorruptedError, match="it has 100 bytes"):
        FaissStore.load(tmp_path / "s").get(["é1"])


def test_a_reader_verifies_beside_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation that a writer replaces while a reader verifies it is not taken for damaged."""
    writer = FaissStore(tmp_path / "s")
    fill(writer, 30)
    writer.flush()
    writer.delete(["é0"])
    writer.flush()
    reader, find, done = FaissStore.load(tmp_path / "s"), _store_folder.find_manifest, list[int]()

    def finding(folder: Path) -> Any:
        found = find(folder)
        if not done:
            done.append(1)
            writer.delete(["é1"])
            writer.flush()
        return found

    monkeypatch.setattr(_store_folder, "find_manifest", finding)
    reader.verify()
    assert done
    assert reader.count() == 29
    (tmp_path / "s" / "removed-3-0.bin").write_bytes(b"")
    with pytest.raises(StoreCorruptedError, match=r"removed-3-0.bin"):
        writer.verify()


def test_labels_of_which_nothing_is_left_are_not_read(tmp_path: Path) -> None:
    """A count and a scan do without a damaged segment all of whose records were removed."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 30)
        store.flush()
        fill(store, 40, start=30)
        store.flush()
        store.delete(names(30))
    (tmp_path / "s" / "segment-1-0.bin").unlink()
    with FaissStore.load(tmp_path / "s") as store:
        assert store.count("x") == 40
        assert sum(map(len, store.scan("x"))) == sum(map(len, store.scan())) == 40


def _ids_of(store: FaissStore) -> list[str]:
    """All ids that a scan lists before it tells of damage."""
    listed: list[str] = []
    try:
        for each in store.scan():
            listed.extend(each.ids.tolist())
    except StoreCorruptedError:
        pass
    return listed


def test_a_disk_that_gives_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says is an error of the store's; what was cut off while it is open is damage."""
    with FaissStore(tmp_path / "s", index="Flat") as store:
        fill(store, 100)

    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with FaissStore.load(tmp_path / "s") as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", failing, raising=False)
            with pytest.raises(StoreUnavailableError, match=r"segment-1-0.bin cannot be read.*Input/output"):
                store.search(normal(0, 1), 1)
        if os.name != "nt":
            os.truncate(tmp_path / "s" / "segment-1-0.bin", 4096)
            with pytest.raises(StoreCorruptedError, match="it was cut off while it was open"):
                store.search(normal(0, 1), 1)


class TestIndex:
    """An index is derived from the vectors: whatever becomes of it, no record and no flush is lost."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        with FaissStore(tmp_path / "s", index="IVF16,Flat", recall=0.9) as store:
            store.upsert(names(2000), normal(0, 2000), [1] * 2000)
        return tmp_path / "s"

    @pytest.mark.parametrize("how", ["flip", "missing", "cut"])
    def test_damage_is_told_and_the_index_built_anew(self, folder: Path, how: str) -> None:
        """Searches are exact until the next flush, which builds another; `verify` names the file."""
        (path,) = folder.glob("ann-*.faiss")
        content = bytearray(path.read_bytes())
        content[-1000] ^= 64
        path.write_bytes(content[:-1] if how == "cut" else content)
        if how == "missing":
            path.unlink()
        with FaissStore.load(folder) as reader:
            with pytest.warns(
                ClipRetrievalWarning, match=rf"{path.name} is damaged: [^.]*. No vector is lost"
            ):
                found = reader.search(normal(0, 2000)[::40], 1)
            assert found.ids[:, 0].tolist() == names(2000)[::40]
            assert reader.index_info.factory == "Flat"
            with pytest.raises(StoreCorruptedError, match=path.name):
                reader.verify()
            reader.save(folder.with_name("copy"))
        for place in (folder, folder.with_name("copy")):
            with FaissStore(place) as store:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    store.search(normal(0, 1), 1)
                store.upsert(["new"], normal(1, 1), [1])
                store.flush()
                assert store.index_info.factory == "IVF16,Flat"
                store.verify()

    def test_a_copy_holds_no_bad_index(self, folder: Path) -> None:
        """Where nobody has searched through it yet, a damaged index is left out of a copy."""
        (path,) = folder.glob("ann-*.faiss")
        content = bytearray(path.read_bytes())
        content[-1000] ^= 64
        path.write_bytes(content)
        with FaissStore.load(folder) as store:
            store.save(folder.with_name("copy"))
        with FaissStore.load(folder.with_name("copy")) as store:
            assert store.index_info.factory == "Flat"
            assert store.search(normal(0, 2000)[::40], 1).ids[:, 0].tolist() == names(2000)[::40]
            store.verify()

    def test_a_warning_that_is_an_error_does_no_more(self, folder: Path) -> None:
        """Who has warnings raised gets one, and then answers."""
        (path,) = folder.glob("ann-*.faiss")
        path.unlink()
        with FaissStore.load(folder) as store:
            with pytest.raises(ClipRetrievalWarning, match="it is missing"):
                store.search(normal(0, 1), 1)
            assert store.search(normal(0, 1), 1).ids.tolist() == [["é0"]]

    def test_files_that_cannot_be_opened_are_not_in_force(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A new index is opened before a manifest names it: whatever hinders that, the old one stays."""
        with FaissStore(folder) as store:
            store.delete(names(100))

            def failing(path: Path, _: int) -> Any:
                raise OSError(errno.EMFILE, "Too many open files", str(path))

            with monkeypatch.context() as patch:
                patch.setattr(_covering, "MappedFile", failing)
                with pytest.raises(StoreUnavailableError, match="Too many open files"):
                    store.compact()
            store.upsert(["new"], normal(1, 1), [1])
            store.flush()
            assert {*sizes(folder)} == named(folder)
            assert store.index_info.tombstones == 100
        with FaissStore.load(folder) as store:
            assert store.count() == 1901
            store.verify()

    @pytest.mark.parametrize("index", ["HNSW8", "SQfp16"])
    def test_a_copy_leaves_a_hollow_index_out(self, tmp_path: Path, index: str) -> None:
        """Where most of it is tombstones, the copy is searched exactly, and builds one at its first flush."""
        with FaissStore(tmp_path / "s", index=index, recall=0.5) as store:
            store.upsert(names(4000), normal(0, 4000), [1] * 4000)
            store.flush()
            store.delete(names(2400))
            store.save(tmp_path / "copy")
            store.save(tmp_path / "copy")
        with FaissStore(tmp_path / "copy") as store:
            store.verify()
            assert store.index_info.factory == "Flat"
            assert store.search(normal(0, 4000)[3900:], 1).ids[:, 0].tolist() == names(100, 3900)
            store.write_manifest({"a": 1})
            store.flush()
            assert store.index_info.factory == index


class Interrupting(FaissStore):
    """Interrupted once, just after it has taken over something that was written."""

    armed = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_held" and self.armed and value.segments.total:
            self.armed = False
            raise KeyboardInterrupt


Interrupting.__name__ = "FaissStore"


@pytest.mark.parametrize("step", ["upsert", "flush", "compact"])
def test_no_file_goes_that_is_held(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between writing and taking note of it, a store flushes all that it holds."""
    monkeypatch.setattr(_keeper, "SEALED_VALUES", 800)
    folder = tmp_path / "s"
    with Interrupting(folder, index="IVF16,Flat", recall=0.5) as store:
        fill(store, 1500)
        store.flush()
        store.delete(names(300))
        store.armed = True
        with suppress(KeyboardInterrupt):
            fill(store, 150 if step == "upsert" else 20, start=2000)
            getattr(store, step)()
        assert not store.armed
        found = contents(store, names(2200))
        store.flush()
    with FaissStore.load(folder) as store:
        assert contents(store, names(2200)) == found
        store.verify()


def test_a_full_disk_is_not_tried_at_each_upsert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written ahead stays in memory, and is tried again when there is much more."""
    monkeypatch.setattr(_keeper, "SEALED_ROWS", 100)
    store, tried = FaissStore(tmp_path / "s"), []
    fill(store, 40)
    store.flush()

    def failing(source: Any, target: Any) -> None:
        tried.append(target)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        fill(store, 100, start=100)
        for place in range(20):
            fill(store, 1, start=300 + place)
        assert len(tried) == 1
        fill(store, 30, start=400)
        assert len(tried) == 2
    store.close()
    assert FaissStore.load(tmp_path / "s").count() == 190


def test_long_metadata_are_written_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fills the memory need not be vectors."""
    monkeypatch.setattr(_keeper, "SEALED_CHARACTERS", 5000)
    with FaissStore(tmp_path / "s") as store:
        for place in range(12):
            store.upsert([f"é{place}"], normal(place, 1), [1], [{"text": "x" * 500}])
        assert list((tmp_path / "s").glob("segment-*"))
        store.leave_when_written()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_a_closed_store_holds_no_files(tmp_path: Path) -> None:
    """Neither after `close`, nor once it has left the folder; and then it can be copied."""
    folder = tmp_path / "s"

    def held() -> int:
        paths = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
        return sum(str(tmp_path) in str(path.readlink()) for path in paths if path.is_symlink())

    with FaissStore(folder, index="IVF16,Flat", recall=0.5) as store:
        fill(store, 600)
        store.flush()
        fill(store, 10, start=700)
        store.flush()
        assert held() > 0
    assert held() == 0
    gone = FaissStore(folder, recall=0.6)
    gone.leave_when_written()
    gone.delete(["é1"])
    assert held() == 0
    assert [each.count() for each in (copy.copy(gone), pickle.loads(pickle.dumps(gone)))] == [609, 609]


def crafted(folder: Path, monkeypatch: pytest.MonkeyPatch, **parts: Any) -> None:
    """Write a store of thirty records with other parts than it would have, whose checksums are right."""
    write = _segment._write_part

    def writing(target: Any, pieces: Any, block: int, digests: Any) -> int:
        name = list(ORDER)[len(seen)]
        seen.append(name)
        if name in parts:
            pieces = [parts[name](np.concatenate([np.asarray(each) for each in pieces]))]
        return write(target, pieces, block, digests)

    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(_segment, "_write_part", writing)
        with FaissStore(folder, index="Flat") as store:
            labels = [f"label {place % 3}" for place in range(30)]
            store.upsert(names(30), normal(0, 30), labels, [{"a": 1}] * 30)


ORDER = ("vectors", "norms", "labels", "names", "id_ends", "ids", "text_ends", "texts", "hashes", "order")


def signalling(values: Any) -> Any:
    """Return vectors of which one holds a NaN that warns when it is converted."""
    values = values.copy()
    values.reshape(-1).view(np.uint32)[9] = 0x7FA00000
    return values


def put(place: int, value: Any) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values = values.copy()
        values.reshape(-1)[place] = value
        return values

    return change


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("vectors", put(9, np.nan), "the vector in row 1 has the length nan"),
        ("vectors", signalling, "the vector in row 1 has the length nan"),
        ("vectors", put(9, np.inf), "the vector in row 1 has the length inf"),
        ("vectors", put(9, 50.0), "the vector in row 1 has the length 50"),
        ("norms", put(3, np.nan), "the vector in row 3 has the length"),
        ("norms", put(3, 1e9), "the vector in row 3 has the length"),
        ("labels", put(2, 3), "a label is none of its names"),
        ("labels", put(2, -1), "a label is none of its names"),
        ("id_ends", put(4, 2**40), "its texts overlap"),
        ("id_ends", put(4, -1), "its texts overlap"),
        ("text_ends", put(4, 2**62), "its texts overlap"),
        ("hashes", lambda values: values[::-1].copy(), "its hashes do not ascend|an id is not found"),
        ("order", put(5, 31), "an id is that of no row"),
        ("order", lambda values: np.roll(values, 1), "an id is not found by its hash"),
    ],
)
def test_every_value_of_a_crafted_segment_is_checked(
    tmp_path: Path, part: str, change: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a store cannot have written is told by `verify`, and by whatever asks for it."""
    crafted(tmp_path / "s", monkeypatch, **{part: change})
    with FaissStore(tmp_path / "s", read_only=True) as store:
        for ask in (store.verify, lambda: (store.get(names(30)), store.search(normal(0, 2), 30))):
            if part not in ("hashes", "order") or ask == store.verify:
                with pytest.raises(StoreCorruptedError, match=f"segment-1-0.bin is damaged: .*({why})"):
                    ask()


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 31},
        {"rows": 0},
        {"rows": 2**40},
        {"longest": 0.1},
        {"longest": float("nan")},
        {"names": None},
        {"ids": 0},
        {"texts": -1},
        {"name": "../segment-1-0.bin"},
        {"name": "segment-9-0.bin"},
        {"sha256": "0" * 64},
        {"longest": 1e308},
        "twice",
    ],
)
def test_every_field_of_a_segments_entry_is_checked(tmp_path: Path, changes: Any) -> None:
    """A manifest with a right checksum, but of another segment, is told or opens no file."""
    with FaissStore(tmp_path / "s", index="Flat") as store:
        fill(store, 30)
    path = tmp_path / "s" / "MANIFEST.json"
    content = json.loads(path.read_text())
    if changes == "twice":
        content.update(segments=content["segments"] * 2, count=60)
    else:
        content["segments"][0].update(changes)
    del content["sha256"]
    path.write_text(json.dumps({**content, "sha256": _manifest._checksum(content)}))
    with pytest.raises(StoreCorruptedError, match=r"(MANIFEST.json|segment-\S*.bin) is damaged: "):
        FaissStore(tmp_path / "s", read_only=True).verify()


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "more"])
def test_the_file_of_removed_rows_is_verified(tmp_path: Path, damage: str) -> None:
    """Which records are gone is told by the checksum that the manifest has."""
    with FaissStore(tmp_path / "s", index="Flat") as store:
        fill(store, 18)
        store.flush()
        store.delete(names(5))
    (path,) = (tmp_path / "s").glob("removed-*.bin")
    content = path.read_bytes()
    changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "more": content + b"\1"}
    path.unlink()
    if damage in changed:
        path.write_bytes(changed[damage])
    with pytest.raises(StoreCorruptedError, match=path.name):
        FaissStore(tmp_path / "s", read_only=True)
