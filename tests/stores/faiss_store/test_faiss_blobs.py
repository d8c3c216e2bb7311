"""Blobs in a store's folder: of one flush with the records, verified, and written only when they change."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_parts import named, seal
from sklearn.base import clone
from warm_process import run_warm

from clipretrieval.errors import (
    InvalidInputError,
    StoreCorruptedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import BlobStore, FaissStore, MemoryStore
from clipretrieval.stores.local import folder as _folder
from clipretrieval.stores.local import store as _local_store

STATISTICS = np.random.default_rng(0).bytes(200_000)
OPENINGS: tuple[dict[str, Any], ...] = ({"read_only": True}, {"read_only": True, "mmap": True}, {})
DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "missing": lambda path: path.unlink(),
}


def fill(store: Any, value: int, count: int = 20) -> None:
    rows = np.full((count, 4), value, dtype=np.float32)
    store.upsert([str(place) for place in range(count)], rows, [value] * count)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed store of twenty vectors and two blobs."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 1)
        store.write_blob("statistics", STATISTICS)
        store.write_blob("transform", b"")
    return tmp_path / "s"


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "MANIFEST.json").read_text())
    return content


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"LOCK", "MANIFEST.json"}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "LOCK"}


def test_a_blob_that_stays_is_not_written_again(folder: Path) -> None:
    """A flush of records leaves the blobs' files as they are; a changed blob has a new file alone."""
    assert files(folder) == {
        "blob-statistics-1.bin",
        "blob-transform-1.bin",
        "segment-1-0.bin",
    }
    before = times(folder)
    with FaissStore(folder) as store:
        store.write_blob("statistics", STATISTICS)
        store.flush()
        assert times(folder) == before
        fill(store, 2)
        store.flush()
        assert files(folder) == {
            "blob-statistics-1.bin",
            "blob-transform-1.bin",
            "removed-2-0.bin",
            "segment-1-0.bin",
            "segment-2-0.bin",
        }
        assert times(folder)["blob-statistics-1.bin"] == before["blob-statistics-1.bin"]
        store.write_blob("statistics", b"other")
        store.flush()
        store.write_blob("transform", None)
        store.flush()
        records = {"removed-2-0.bin", "segment-1-0.bin", "segment-2-0.bin"}
        assert files(folder) == {"blob-statistics-3.bin", *records}
        store.delete([str(place) for place in range(20)])
    assert files(folder) == {"blob-statistics-3.bin"}
    assert FaissStore.load(folder).read_blob("statistics") == b"other"


def test_a_folder_without_blobs_says_nothing_of_them(tmp_path: Path) -> None:
    """What a store without blobs writes is what older versions wrote, also once the last blob is gone."""
    with FaissStore(tmp_path / "s") as store:
        fill(store, 1)
        store.flush()
        assert "blobs" not in manifest_of(tmp_path / "s")
        store.write_blob("a", b"x")
        store.flush()
        assert set(manifest_of(tmp_path / "s")["blobs"]) == {"a"}
        store.write_blob("a", None)
    assert "blobs" not in manifest_of(tmp_path / "s")


def test_a_file_that_was_removed_is_written_again(folder: Path) -> None:
    """A store that holds a blob whose file somebody deleted puts it back with its next flush."""
    with FaissStore(folder) as store:
        (folder / "blob-statistics-1.bin").unlink()
        fill(store, 2)
    assert FaissStore.load(folder).read_blob("statistics") == STATISTICS


def test_a_copy_takes_over_no_file(folder: Path) -> None:
    """A copy over another is complete, even if a blob there has been damaged since."""
    held = MemoryStore()
    held.write_blob("statistics", STATISTICS)
    held.save(folder.with_name("copy"))
    path = folder.with_name("copy") / "blob-statistics-0.bin"
    path.write_bytes(b"y" * len(STATISTICS))
    held.save(folder.with_name("copy"))
    assert MemoryStore.load(folder.with_name("copy")).read_blob("statistics") == STATISTICS
    with FaissStore(folder) as store:
        store.save(folder.with_name("other"))
    assert FaissStore.load(folder.with_name("other")).read_blob("statistics") == STATISTICS


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_private_store_keeps_its_blobs_private(folder: Path) -> None:
    """A blob's file gets the permissions of the manifest."""
    (folder / "MANIFEST.json").chmod(0o600)
    with FaissStore(folder) as store:
        store.write_blob("more", b"x")
    assert stat.S_IMODE((folder / "blob-more-2.bin").stat().st_mode) == 0o600


def test_a_read_only_store_refuses_blobs(folder: Path) -> None:
    """What was opened to be read, mapped or not, reads blobs and writes none."""
    before = times(folder)
    for mmap in (False, True):
        with FaissStore(folder, read_only=True, mmap=mmap) as store:
            assert isinstance(store, BlobStore)
            assert (store.read_blob("statistics"), store.read_blob("transform")) == (STATISTICS, b"")
            for content in (b"x", None):
                with pytest.raises(UnsupportedOperationError, match="read-only"):
                    store.write_blob("statistics", content)
    assert times(folder) == before


def test_clones_and_copies() -> None:
    """A clone starts without blobs; a copy and a pickle have them, each its own."""
    for store in (MemoryStore(), FaissStore()):
        store.write_blob("a", b"x")
        assert clone(store).read_blob("a") is None
        copied = store.__copy__()
        store.write_blob("a", b"y")
        assert copied.read_blob("a") == b"x"


def test_blobs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs that together are larger than a folder may hold are refused when they are given."""
    monkeypatch.setattr(_local_store, "LARGEST_BLOBS", 1000)
    with FaissStore(tmp_path / "s") as store:
        store.write_blob("a", bytes(600))
        with pytest.raises(InvalidInputError, match="'b' the blobs would take 1,100 bytes; 1,000"):
            store.write_blob("b", bytes(500))
        store.write_blob("a", bytes(500))
        store.write_blob("b", bytes(500))


class TestDamage:
    """A blob's file that is not as it was written is told to whoever reads it, and to nobody else."""

    def refuse(self, folder: Path, match: str) -> None:
        """A manifest that cannot be is refused when the folder is opened."""
        for options in OPENINGS:
            with pytest.raises(StoreCorruptedError, match=match) as caught:
                FaissStore(folder, **options)
            assert "Restore the folder" in str(caught.value)

    def tell(self, folder: Path, match: str) -> None:
        """A damaged blob leaves the records and the other blobs as they are."""
        for options in OPENINGS:
            with FaissStore(folder, **options) as store:
                for _ in range(2):
                    with pytest.raises(StoreCorruptedError, match=match) as caught:
                        store.read_blob("statistics")
                assert "from a copy, or write the blob 'statistics' again" in str(caught.value)
                assert (store.count(), store.read_blob("transform")) == (20, b"")
                assert store.search(np.ones((1, 4), dtype=np.float32), 1).labels.tolist() == [[1]]
        with MemoryStore.load(self.as_memory(folder)) as store:
            with pytest.raises(StoreCorruptedError, match="is damaged: "):
                store.read_blob("statistics")
            assert (store.count(), store.read_blob("transform")) == (0, b"")

    def as_memory(self, folder: Path) -> Path:
        """Make a folder of a MemoryStore with the same blobs, damaged as they are."""
        copy = folder.with_name("memory")
        shutil.rmtree(copy, ignore_errors=True)
        with MemoryStore() as store:
            store.write_blob("statistics", STATISTICS)
            store.write_blob("transform", b"")
            store.save(copy)
        damaged, path = folder / "blob-statistics-1.bin", copy / "blob-statistics-0.bin"
        path.unlink()
        if damaged.is_file():
            shutil.copy(damaged, path)
        return copy

    def test_a_flipped_bit_a_cut_and_a_missing_file_are_reported(self, folder: Path) -> None:
        """The message names the file."""
        path = folder / "blob-statistics-1.bin"
        for place in (0, 77_777, len(STATISTICS) - 1):
            changed = bytearray(STATISTICS)
            changed[place] ^= 1
            path.write_bytes(changed)
            self.tell(folder, r"blob-statistics-1.bin is damaged: its content .* checksum")
        path.write_bytes(STATISTICS[:-1])
        self.tell(folder, "blob-statistics-1.bin is damaged: it has 199999 bytes, not 200000")
        path.write_bytes(STATISTICS + b"x")
        self.tell(folder, "blob-statistics-1.bin is damaged: it has 200001 bytes")
        path.unlink()
        self.tell(folder, "blob-statistics-1.bin is damaged: it is missing")

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_writing_it_again_mends_it(self, folder: Path, damage: str) -> None:
        """The same content, too, is written into a file, and None removes what is left."""
        path = folder / "blob-statistics-1.bin"
        DAMAGES[damage](path)
        for content in (STATISTICS, b"other", None):
            shutil.copytree(folder, folder.with_name("mended"))
            with FaissStore(folder.with_name("mended")) as store:
                store.write_blob("statistics", content)
                assert store.read_blob("statistics") == content
            with FaissStore.load(folder.with_name("mended")) as store:
                assert (store.read_blob("statistics"), store.count()) == (content, 20)
            shutil.rmtree(folder.with_name("mended"))
        with FaissStore(folder) as store:
            store.write_blob("statistics", None)
            store.write_blob("statistics", STATISTICS)
            fill(store, 2)
            store.flush()
            store.write_blob("transform", None)
        assert FaissStore.load(folder).read_blob("statistics") == STATISTICS
        assert [name for name in files(folder) if name.startswith("blob")] == ["blob-statistics-2.bin"]

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_it_stays_damaged_until_then(self, folder: Path, damage: str) -> None:
        """Flushes leave its file as it is, which may be restored, and copies are damaged as well."""
        path = folder / "blob-statistics-1.bin"
        DAMAGES[damage](path)
        left = path.read_bytes() if path.exists() else None
        with FaissStore(folder) as store:
            fill(store, 2)
            store.flush()
            fill(store, 3)
            store.save(folder.with_name("copy"))
        assert (path.read_bytes() if path.exists() else None) == left
        for place in (folder, folder.with_name("copy")):
            with FaissStore.load(place) as store:
                with pytest.raises(StoreCorruptedError, match="is damaged"):
                    store.read_blob("statistics")
                assert store.get(["0"]).labels.tolist() == [3]
        path.write_bytes(STATISTICS)
        assert FaissStore.load(folder).read_blob("statistics") == STATISTICS

    def test_a_reader_that_took_it_up_may_write(self, folder: Path) -> None:
        """What was found damaged by a refresh is known to a later flush."""
        with FaissStore(folder) as store:
            with FaissStore(folder) as other:
                other.write_blob("statistics", STATISTICS[::-1])
            DAMAGES["flipped"](folder / "blob-statistics-2.bin")
            assert store.refresh()
            store.write_blob("statistics", STATISTICS[::-1])
        assert FaissStore.load(folder).read_blob("statistics") == STATISTICS[::-1]

    def test_what_a_writer_removes_meanwhile_is_not_taken_for_damaged(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A blob's file that goes between reading the manifest and the file is looked for in the next."""
        read, done = _folder.read_blob_file, list[str]()

        def reading(place: Path, what: str, entry: Any) -> Any:
            if not done:
                done.append(what)
                with FaissStore(folder) as writer:
                    writer.write_blob("statistics", b"new")
            return read(place, what, entry)

        monkeypatch.setattr(_folder, "read_blob_file", reading)
        assert FaissStore.load(folder).read_blob("statistics") == b"new"

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
    @pytest.mark.parametrize("kind", ["pipe", "zero", "folder"])
    def test_what_is_no_file_is_refused_at_once(self, folder: Path, kind: str) -> None:
        """A pipe, a link to a device and a folder are told, and not waited for."""
        path = folder / "blob-statistics-1.bin"
        path.unlink()
        makers = {"pipe": os.mkfifo, "zero": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}
        makers[kind](path)
        self.tell(folder, "blob-statistics-1.bin is damaged: it is not a regular file")

    @pytest.mark.parametrize("count", [0, 20])
    @pytest.mark.parametrize(
        ("blob", "name"),
        [
            ("statistics", "../secret"),
            ("statistics", "/etc/passwd"),
            ("statistics", "blob-statistics-1.bin/../../secret"),
            ("statistics", "blob-../../secret-1.bin"),
            ("statistics", "blob-statistics-2.bin"),
            ("statistics", "blob-statistics-١.bin"),
            ("statistics", "blob-statistics-1.bin\n"),
            ("statistics", "blob-transform-1.bin"),
            ("statistics", "MANIFEST.json"),
            ("statistics", "segment-1-0.bin"),
            ("../secret", "blob-../secret-1.bin"),
            ("", "blob--1.bin"),
            (".*", "blob-statistics-1.bin"),
            ("Statistics", "blob-Statistics-1.bin"),
            ("a" * 65, f"blob-{'a' * 65}-1.bin"),
        ],
    )
    def test_a_name_cannot_lead_elsewhere(self, folder: Path, count: int, blob: str, name: Any) -> None:
        """A crafted manifest opens no file but a blob's own in this folder."""
        (folder.parent / "secret").write_bytes(STATISTICS)
        if not count:
            with FaissStore(folder) as store:
                store.delete([str(place) for place in range(20)])
                store.write_blob("statistics", None)
                store.write_blob("statistics", STATISTICS)
        content = manifest_of(folder)
        entry = dict(content["blobs"]["statistics"], name=name)
        if name == "blob-statistics-2.bin":
            entry["name"] = f"blob-statistics-{content['generation'] + 1}.bin"
        seal(folder, {**content, "blobs": {blob: entry}})
        self.refuse(folder, r"MANIFEST.json is damaged: .* is no name of a file of the blob")

    @pytest.mark.parametrize(
        "blobs",
        [
            [],
            "statistics",
            {"statistics": None},
            {"statistics": {"name": "blob-statistics-1.bin"}},
            {"statistics": {"name": 5, "size": 1, "sha256": "0" * 64}},
            {"statistics": {"name": "blob-statistics-1.bin", "size": -1, "sha256": "0" * 64}},
            {"statistics": {"name": "blob-statistics-1.bin", "size": "1", "sha256": "0" * 64}},
            {"statistics": {"name": "blob-statistics-1.bin", "size": 2**40, "sha256": "0" * 64}},
            {"statistics": {"name": "blob-statistics-1.bin", "size": 1, "sha256": "0" * 63}},
            {
                name: {"name": f"blob-{name}-1.bin", "size": 2**29 + 1, "sha256": "0" * 64}
                for name in ("statistics", "transform")
            },
        ],
    )
    def test_every_field_is_checked(self, folder: Path, blobs: Any) -> None:
        """What a store cannot have written is told before a blob's file is read."""
        seal(folder, {**manifest_of(folder), "blobs": blobs})
        self.refuse(folder, r"MANIFEST.json is damaged: ")

    @pytest.mark.skipif(not hasattr(os, "truncate"), reason="the system cannot make sparse files")
    def test_a_larger_file_than_the_manifest_says_is_not_read(self, folder: Path) -> None:
        """A file of a tebibyte in a blob's place is told at once."""
        os.truncate(folder / "blob-statistics-1.bin", 2**40)
        with FaissStore.load(folder) as store:
            with pytest.raises(StoreCorruptedError, match=f"is damaged: it has {2**40} bytes"):
                store.read_blob("statistics")
            assert store.count() == 20

    def test_only_what_a_store_writes_is_removed(self, folder: Path) -> None:
        """A flush takes away blobs' files of other generations, and no file that is like them."""
        (folder / "blob-old-0.bin").write_bytes(b"x")
        (folder / ".blob-old-0.bin.0123456789abcdef.tmp").write_bytes(b"x")
        kept = ["blob-old.bin", "blob-Old-1.bin", "blob-old-x.bin", "notes.bin"]
        for name in kept:
            (folder / name).write_bytes(b"x")
        with FaissStore(folder) as store:
            fill(store, 2)
        records = ["removed-2-0.bin", "segment-1-0.bin", "segment-2-0.bin"]
        assert files(folder) == {*kept, *records, "blob-statistics-1.bin", "blob-transform-1.bin"}


def test_a_mended_file_is_verified_as_it_is(folder: Path) -> None:
    """`verify` reads what lies in the folder: a file that was missing at the opening may be back."""
    path = folder / "blob-statistics-1.bin"
    path.unlink()
    with FaissStore(folder, read_only=True) as store:
        with pytest.raises(StoreCorruptedError, match="it is missing"):
            store.verify()
        path.write_bytes(STATISTICS)
        store.verify()


def test_a_blobs_file_alone_is_no_new_store(folder: Path) -> None:
    """Where only a blob's file is left, the manifest is missed, and nothing is made over it."""
    for name in (*files(folder), "MANIFEST.json"):
        if name != "blob-statistics-1.bin":
            (folder / name).unlink()
    with pytest.raises(StoreCorruptedError, match=r"MANIFEST.json is damaged: it is missing"):
        FaissStore(folder)


@pytest.mark.parametrize("victim", ["blob-statistics", "segment-", "MANIFEST"])
def test_a_failed_flush_keeps_both_states(folder: Path, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a file cannot be put in place, the folder stays at the last flush, with its blobs."""
    replace, before = os.replace, {path.name: path.read_bytes() for path in folder.iterdir()}

    def failing(source: Any, target: Any) -> None:
        if Path(target).name.startswith(victim):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with FaissStore(folder) as store:
        fill(store, 2)
        store.write_blob("statistics", b"new")
        store.write_blob("transform", None)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            with pytest.raises(StoreUnavailableError, match="flushed before is intact"):
                store.flush()
        assert before.items() <= {path.name: path.read_bytes() for path in folder.iterdir()}.items()
        assert store.read_blob("statistics") == b"new"
    with FaissStore(folder, read_only=True) as store:
        assert (store.read_blob("statistics"), store.read_blob("transform")) == (b"new", None)


# Writes a second state over a first, and is killed at the step of that number: a step is each time that a
# file is synced, put in place or removed. Tells how many steps there are when it is not killed.
KILLED = """
import os, signal, sys
import numpy as np
from clipretrieval.stores import FaissStore

folder, last = sys.argv[1], int(sys.argv[2])
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
    store.upsert([str(place) for place in range(30)], np.full((30, 4), 2), [2] * 30)
    store.write_manifest({"state": 2})
    store.write_blob("statistics", b"2" * 5000)
    store.write_blob("second", b"")
    store.write_blob("first", None)
    store.flush()
print(steps)
"""


@pytest.fixture
def first_state(tmp_path: Path) -> Path:
    """A closed store in the state that the killed processes find."""
    with FaissStore(tmp_path / "first") as store:
        fill(store, 1)
        store.write_manifest({"state": 1})
        store.write_blob("statistics", b"1" * 5000)
        store.write_blob("first", b"")
        store.write_blob("stays", STATISTICS)
    return tmp_path / "first"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_leaves_records_manifest_and_blobs_of_one_flush(tmp_path: Path, first_state: Path) -> None:
    """Killed at any step of a flush, a folder opens with all of the flush before or all of this one."""

    def killed_at(step: int) -> subprocess.CompletedProcess[str]:
        shutil.copytree(first_state, tmp_path / str(step))
        return run_warm(["-c", KILLED, tmp_path / str(step), step])

    def state_of(folder: Path) -> int:
        with FaissStore(folder, read_only=True) as store:
            label = store.get(["0"]).labels.tolist()[0]
            assert (store.count(), store.read_manifest()) == (10 + 10 * label, {"state": label})
            assert store.read_blob("statistics") == str(label).encode() * 5000
            assert store.read_blob("first") == (b"" if label == 1 else None)
            assert store.read_blob("second") == (b"" if label == 2 else None)
            assert store.read_blob("stays") == STATISTICS
            return int(label)

    whole = killed_at(0)
    assert whole.returncode == 0, whole.stderr
    assert state_of(tmp_path / "0") == 2
    states = []
    for step in range(1, int(whole.stdout) + 1):
        done = killed_at(step)
        assert done.returncode == -9, done.stderr
        states.append(state_of(tmp_path / str(step)))
        with FaissStore(tmp_path / str(step)) as store:  # the next writer clears up
            fill(store, 5)
        assert {*files(tmp_path / str(step)), "MANIFEST.json"} == named(tmp_path / str(step))
    assert states == sorted(states)
    assert set(states) == {1, 2}
    assert len(states) > 12


@pytest.fixture
def reader(folder: Path) -> Iterator[FaissStore]:
    """A store that has read the folder."""
    with FaissStore(folder, read_only=True) as store:
        yield store


def test_a_reader_follows_the_blobs(reader: FaissStore, folder: Path) -> None:
    """After a flush, and not before, a refresh takes up blobs that came, changed and went."""
    with FaissStore(folder) as writer:
        writer.write_blob("statistics", b"new")
        writer.write_blob("transform", None)
        writer.write_blob("more", b"x")
        assert not reader.refresh()
        writer.flush()
        assert reader.read_blob("statistics") == STATISTICS
        assert reader.refresh()
        assert [reader.read_blob(name) for name in ("statistics", "transform", "more")] == [
            b"new",
            None,
            b"x",
        ]
        assert not reader.refresh()


def test_a_damaged_blob_is_told_after_a_refresh(reader: FaissStore, folder: Path) -> None:
    """A refresh takes up the records, and not the blob that was before."""
    with FaissStore(folder) as writer:
        fill(writer, 2)
        writer.write_blob("statistics", b"new")
    (folder / "blob-statistics-2.bin").write_bytes(b"bad")
    assert reader.refresh()
    assert reader.get(["0"]).labels.tolist() == [2]
    with pytest.raises(StoreCorruptedError, match="checksum"):
        reader.read_blob("statistics")


def test_a_reader_beside_a_writer_sees_one_flush(folder: Path, reader: FaissStore) -> None:
    """Stores that are opened or refreshed while another flushes have a blob that goes with the records."""

    def numbers(store: FaissStore) -> tuple[int, int]:
        blob = store.read_blob("number")
        return store.get(["0"]).labels.tolist()[0], 1 if blob is None else len(blob) // 1000

    def follow() -> set[int]:
        seen: set[int] = set()
        while 12 not in seen:
            with FaissStore(folder, read_only=True) as opened:
                record, blob = numbers(opened)
                assert record == blob, "what was opened is of two flushes"
            reader.refresh()
            record, blob = numbers(reader)
            assert record == blob, "what was taken up is of two flushes"
            seen.add(record)
        return seen

    with ThreadPoolExecutor(1) as pool, FaissStore(folder) as writer:
        following = pool.submit(follow)
        for number in range(2, 13):
            fill(writer, number)
            writer.write_blob("number", bytes([number]) * 1000 * number)
            writer.flush()
        assert 12 in following.result(timeout=60)


def test_a_writer_takes_up_blobs_before_it_writes(folder: Path) -> None:
    """A store that has read the folder before another wrote to it replaces just what it writes."""
    store = FaissStore(folder)
    with FaissStore(folder) as other:
        other.write_blob("statistics", b"theirs")
        other.write_blob("more", b"theirs")
    store.write_blob("more", b"ours")
    assert store.read_blob("statistics") == b"theirs"
    store.close()
    held = FaissStore.load(folder)
    assert (held.read_blob("statistics"), held.read_blob("more")) == (b"theirs", b"ours")
