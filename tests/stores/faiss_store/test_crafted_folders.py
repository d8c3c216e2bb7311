"""Folders that someone else has written, checksums and all: refused with an error that names the file."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from format1_folders import write_format1

from clipretrieval._util import files as _atomic
from clipretrieval.errors import (
    ClipRetrievalWarning,
    InvalidInputError,
    StoreCorruptedError,
    StoreUnavailableError,
)
from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.faiss import factory as _factory
from clipretrieval.stores.local.folder_manifest import _checksum

ROOT = Path(__file__).parents[3]
DIM = 8


def normal(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)


def fill(store: Any, count: int = 700) -> Any:
    labels = [f"label {place % 3}" for place in range(count)]
    store.upsert([f"id {place}" for place in range(count)], normal(0, count), labels)
    return store


def seal(folder: Path, **changes: Any) -> None:
    """Make sizes and checksums right for what the folder holds, with some fields changed."""
    path = folder / "MANIFEST.json"
    content = {**json.loads(path.read_text()), **changes}
    for entry in content["files"].values():
        data = (folder / entry["name"]).read_bytes()
        entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    del content["sha256"]
    path.write_text(json.dumps({**content, "sha256": _checksum(content)}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of format 1 that searches exactly."""
    ids, labels = [f"id {place}" for place in range(30)], [f"label {place % 3}" for place in range(30)]
    write_format1(tmp_path / "s", ids, normal(0, 30), labels)
    return tmp_path / "s"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build indexes from the first vectors on."""
    monkeypatch.setattr(_factory, "SMALLEST", 4)


def refuse(folder: Path, match: str) -> None:
    """Check that neither a reader nor a writer opens the folder, mapped or not, and finds it whole."""
    for options in ({"read_only": True}, {"read_only": True, "mmap": True}, {}):
        with pytest.raises(StoreCorruptedError, match=match) as caught:
            FaissStore(folder, **options).verify()
        told = str(caught.value)
        # An index can be made from the vectors; what else is damaged has to come from a copy.
        remedy = "builds the index anew" if "/ann-" in told else "Restore the folder"
        assert remedy in told


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("name", ["MANIFEST.json", "index-1.faiss", "records-1.sqlite"])
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder"])
def test_what_is_no_file_is_refused_at_once(folder: Path, name: str, kind: str) -> None:
    """A pipe, a link to a device and a folder in the place of any file are told, and not waited for."""
    path = folder / name
    path.unlink()
    {"pipe": lambda: os.mkfifo(path), "zero": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}[
        kind
    ]()
    refuse(folder, f"{name} is damaged: it is not a regular file")


def test_a_linked_file_is_read(folder: Path, tmp_path: Path) -> None:
    """A folder of links to regular files, as model hubs keep them, opens; a write replaces the links."""
    (tmp_path / "blobs").mkdir()
    names = ["MANIFEST.json", "index-1.faiss", "records-1.sqlite"]
    for name in names:
        (folder / name).rename(tmp_path / "blobs" / name)
        (folder / name).symlink_to(tmp_path / "blobs" / name)
    before = {path.name: path.read_bytes() for path in (tmp_path / "blobs").iterdir()}
    with FaissStore(folder) as store:
        assert store.count() == 30
        store.delete(["id 3"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "blobs").iterdir()} == before
    assert FaissStore.load(folder).count() == 29


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="the system knows no sparse files")
@pytest.mark.parametrize("role", ["vectors", "records"])
def test_empty_space_is_not_read(folder: Path, role: str) -> None:
    """A file of a tebibyte that takes no room on the disk, as its manifest says, is told at once."""
    content = json.loads((folder / "MANIFEST.json").read_text())
    entry = content["files"][role]
    os.truncate(folder / entry["name"], 2**40)
    entry["size"] = 2**40
    del content["sha256"]
    (folder / "MANIFEST.json").write_text(json.dumps({**content, "sha256": _checksum(content)}))
    refuse(folder, f"{entry['name']} is damaged: it has {2**40} bytes, of which only")


def test_a_manifest_is_bounded(folder: Path) -> None:
    """A sparse manifest of three GiB is refused by its size."""
    os.truncate(folder / "MANIFEST.json", 3 << 30)
    refuse(folder, r"MANIFEST.json is damaged: it has 3221225472 bytes")


def test_a_manifest_is_no_larger_than_can_be_read_again() -> None:
    """A manifest that a folder could not be opened with is refused when it is given."""
    with pytest.raises(InvalidInputError, match=r"takes 33554\d+ characters as JSON"):
        MemoryStore().write_manifest({"text": "x" * (1 << 25)})


@pytest.mark.skipif(os.name == "nt", reason="Windows needs a right to make links")
def test_a_lock_that_is_a_link_is_not_emptied(folder: Path, tmp_path: Path) -> None:
    """A crafted LOCK does not lead a writer to another file."""
    (tmp_path / "precious").write_text("kept")
    (folder / "LOCK").unlink(missing_ok=True)
    (folder / "LOCK").symlink_to(tmp_path / "precious")
    with FaissStore(folder, read_only=True) as store:
        assert store.count() == 30
    store = FaissStore(folder)
    with pytest.raises(StoreUnavailableError, match=r"not a regular file; remove it"):
        store.delete(["id 1"])
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 31},
        {"count": 10**12},
        {"count": -1},
        {"count": True},
        {"count": 10**30},
        {"dim": 4},
        {"dim": None},
        {"dim": 0},
        {"generation": "1"},
        {"generation": 2},
        {"metric": "far"},
        {"kind": 5},
        {"manifest": []},
        {"index": 5},
        {"index": "IDMap," * 100_000 + "Flat"},
        {"index": "A" * 20_000},
        {"index": "IDMap,Flat"},
        {"index": "PQ7"},
        {"index": "NSG16"},
        {"index_state": {"target": 2, "built": None}},
        {"index_state": {"target": 0.9, "built": {"factory": "HNSW8"}}},
        {"index_state": []},
        {"files": {}},
        {"files": {"vectors": {"name": "../index-1.faiss", "size": 1, "sha256": "0" * 64}}},
    ],
)
def test_every_field_of_a_manifest_is_checked(folder: Path, changes: dict[str, Any]) -> None:
    """A value of the wrong type or out of range is StoreCorruptedError, whatever the checksum says."""
    if "files" in changes:
        content = json.loads((folder / "MANIFEST.json").read_text())
        content.update(changes)
        del content["sha256"]
        (folder / "MANIFEST.json").write_text(json.dumps({**content, "sha256": _checksum(content)}))
    else:
        seal(folder, **changes)
    refuse(folder, r"(MANIFEST.json|index-1.faiss|records-1.sqlite) is damaged: ")


ENDLESS = (
    "ALTER TABLE records RENAME TO kept; CREATE VIEW records AS WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL "
    "SELECT i + 1 FROM n) SELECT i AS row, 'a' || i AS id, 'x' AS label, '{}' AS metadata, 1.0 AS norm FROM n"
)


@pytest.mark.parametrize(
    "script",
    [
        ENDLESS,
        "CREATE TRIGGER more AFTER INSERT ON records BEGIN SELECT 1; END",
        "CREATE INDEX more ON records (label)",
        "ALTER TABLE records ADD COLUMN more AS (row + 1)",
        "CREATE TABLE copy AS SELECT * FROM records; DROP TABLE records; ALTER TABLE copy RENAME TO records",
        "UPDATE records SET metadata = '{' WHERE row = 3",
        "UPDATE records SET metadata = '[]' WHERE row = 3",
        "UPDATE records SET metadata = '{\"a\": NaN}' WHERE row = 3",
        "UPDATE records SET metadata = '{\"a\": 1e999}' WHERE row = 3",
        "UPDATE records SET metadata = x'7b7d' WHERE row = 3",
        "UPDATE records SET label = 3 WHERE row = 3",
        "UPDATE records SET label = 1.5",
        "UPDATE records SET label = x'00'",
        "UPDATE records SET label = CAST(x'ff' AS TEXT) WHERE row = 3",
        "UPDATE records SET id = '' WHERE row = 3",
        "UPDATE records SET id = 'id 4' WHERE row = 3",
        "UPDATE records SET id = x'00' WHERE row = 3",
        "UPDATE records SET norm = 9e999 WHERE row = 3",
        "UPDATE records SET norm = 1.0 WHERE row = 3",
        "UPDATE records SET norm = 'nan' WHERE row = 3",
        "UPDATE records SET row = 300 WHERE row = 29",
        "DELETE FROM records WHERE row = 29",
        "INSERT INTO records SELECT row + 30, id || 'x', label, metadata, norm FROM records",
    ],
)
def test_every_value_of_the_records_is_checked(folder: Path, script: str) -> None:
    """Another schema, an endless view and a malformed cell are refused before anything is searched."""
    with closing(sqlite3.connect(folder / "records-1.sqlite", isolation_level=None)) as connection:
        connection.executescript(script)
    seal(folder)
    refuse(folder, r"(records-1.sqlite|index-1.faiss) is damaged: ")


@pytest.mark.parametrize("value", [np.nan, np.inf, 5.0])
def test_the_vectors_are_those_that_the_records_are_of(folder: Path, value: float) -> None:
    """A value that is not finite, or another than was stored, is found by the norm beside it."""
    data = bytearray((folder / "index-1.faiss").read_bytes())
    data[-4:] = struct.pack("<f", value)
    (folder / "index-1.faiss").write_bytes(data)
    seal(folder)
    refuse(folder, r"index-1.faiss is damaged: the vector in row 29 has the length")


@pytest.mark.parametrize(
    ("place", "form", "value"),
    [
        (0, "4s", b"IwFl"),
        (0, "4s", b"null"),
        (4, "i", 16),
        (8, "q", 31),
        (8, "q", 2**62),
        (32, "B", 2),
        (33, "i", 7),
        (37, "Q", 2**61),
    ],
)
def test_the_head_of_the_vectors_is_checked(folder: Path, place: int, form: str, value: Any) -> None:
    """No number in the file of vectors is believed, and none is given to FAISS."""
    data = bytearray((folder / "index-1.faiss").read_bytes())
    struct.pack_into(f"<{form}", data, place, value)
    (folder / "index-1.faiss").write_bytes(data)
    seal(folder)
    refuse(folder, r"index-1.faiss is damaged: ")


@pytest.mark.parametrize(
    "header",
    [b"{", b"'''", b"{'descr': '|O', 'fortran_order': False, 'shape': (30, 8), }", b"(" * 5000, b"[]"],
)
def test_the_header_of_an_array_is_compared(tmp_path: Path, header: bytes) -> None:
    """Nothing of a copy's vectors is parsed, by NumPy or by Python."""
    write_format1(
        tmp_path / "s", [str(place) for place in range(30)], normal(0, 30), [0] * 30, kind="MemoryStore"
    )
    path = tmp_path / "s" / "vectors-1.npy"
    data = path.read_bytes()
    path.write_bytes(data[:8] + len(header).to_bytes(2, "little") + header + data[128:])
    seal(tmp_path / "s")
    with pytest.raises(StoreCorruptedError, match=r"vectors-1.npy is damaged: its header is"):
        MemoryStore.load(tmp_path / "s")


def written(folder: Path, index: str) -> tuple[Path, Any]:
    """Write a store with an index; return its file and the index as FAISS has it."""
    with FaissStore(folder, index=index, recall=0.1) as store:
        fill(store)
        assert store.index_info.factory == index
    path = next(folder.glob("ann-*.faiss"))
    return path, faiss.read_index(str(path))


def rewritten(path: Path, index: Any) -> None:
    faiss.write_index(index, str(path))
    seal(path.parent)


def change(path: Path, index: Any, name: str, place: int, value: int) -> None:
    """Put a value into an array of the graph in a file."""
    array, data = faiss.vector_to_array(getattr(index.hnsw, name)), path.read_bytes()
    start = data.index(array.tobytes()) + place * array.itemsize
    changed = np.array([value], dtype=array.dtype).tobytes()
    path.write_bytes(data[:start] + changed + data[start + array.itemsize :])
    seal(path.parent)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("neighbors", 5, 700, "a link leads to no vector"),
        ("neighbors", 5, -2, "a link leads to no vector"),
        ("levels", 3, 0, "a vector has no level"),
        ("levels", 3, 99, "a vector has no level"),
        ("levels", 3, 4, "the offsets do not follow"),
        ("offsets", 3, 2**60, "the offsets do not follow"),
        ("cum_nneighbor_per_level", 1, 1, "the widths of levels"),
    ],
)
def test_every_link_of_a_graph_is_checked(
    tmp_path: Path, name: str, place: int, value: int, message: str
) -> None:
    """A link, level or offset that would lead a search out of the graph's memory is found."""
    path, index = written(tmp_path / "s", "HNSW8")
    change(path, index, name, place, value)
    refuse(path.parent, f"{path.name} is damaged: {message}")


@pytest.mark.usefixtures("small")
def test_the_upper_levels_of_a_graph_are_closed(tmp_path: Path) -> None:
    """A link on an upper level leads to a vector of that level, as a search goes on from there."""
    path, index = written(tmp_path / "s", "HNSW8")
    levels, offsets = (faiss.vector_to_array(getattr(index.hnsw, each)) for each in ("levels", "offsets"))
    top, low = int(np.argmax(levels)), int(np.argmin(levels))
    change(path, index, "neighbors", int(offsets[top]) + 16, low)  # 2·8 links lie before those of level 1
    refuse(path.parent, "a link leads to a vector below its level")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", [700, -1, 256000175, 3])
def test_every_id_of_a_list_is_a_row(tmp_path: Path, value: int) -> None:
    """An id out of range, and one that is there twice, are found when the folder is opened."""
    path, index = written(tmp_path / "s", "IVF8,SQ8")
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(2), 3)
    ids[0] = value if value != 3 else ids[1]
    rewritten(path, index)
    refuse(path.parent, f"{path.name} is damaged: (its ids are not those|it holds an id more than once)")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", [700, -1, 2**62])
def test_every_label_of_a_row_is_a_vector(tmp_path: Path, value: int) -> None:
    """The labels that lead from rows to vectors of a graph are within it, and no two are the same."""
    path, _ = written(tmp_path / "s", "HNSW8")
    labels = np.load(path.with_suffix(".npy"))
    for changed in (value, labels[1]):
        np.save(path.with_suffix(".npy"), np.concatenate([[changed], labels[1:]]))
        seal(path.parent)
        refuse(path.parent, f"{path.stem}.npy is damaged: its labels are not those of 700 vectors among 700")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("index", ["IVF4,SQ8", "HNSW8,SQ8"])
@pytest.mark.parametrize("outliers", [1, 701, -1, "1"])
def test_the_outliers_are_those_that_the_index_lacks(tmp_path: Path, index: str, outliers: Any) -> None:
    """A manifest that tells of another number of outliers than there are is refused."""
    with FaissStore(tmp_path / "s", index=index) as store:
        fill(store)
    state = json.loads((tmp_path / "s" / "MANIFEST.json").read_text())["index_state"]
    assert state["built"]["outliers"] == 0
    state["built"]["outliers"] = outliers
    seal(tmp_path / "s", index_state=state)
    refuse(tmp_path / "s", "is damaged")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("factory", ["HNSW16", "IVF4,Flat", "PQ4x4", "IVF8,SQ4", "Flat", "PCA4,SQ8"])
def test_an_index_is_the_one_that_is_named(tmp_path: Path, factory: str) -> None:
    """An index of another kind, size or dimension than the manifest names is not used."""
    path, _ = written(tmp_path / "s", "IVF8,SQ8")
    other = faiss.index_factory(DIM, factory)
    other.train(normal(0, 700))
    other.add(normal(0, 700))
    rewritten(path, other)
    if factory == "IVF8,SQ4":  # the same form with other contents
        refuse(path.parent, f"{path.name} is damaged: the type of codes is 1, not 0")
        return
    store = FaissStore(path.parent, read_only=True)
    with pytest.warns(ClipRetrievalWarning, match=r"cannot be checked .* Searches are exact until") as caught:
        store.search(normal(0, 5), 1)
    assert caught[0].filename == __file__
    assert store.search(normal(0, 5), 1).ids[:, 0].tolist() == [f"id {place}" for place in range(5)]


@pytest.mark.usefixtures("small")
def test_an_index_that_cannot_be_checked_is_built_anew(tmp_path: Path) -> None:
    """An index of a kind whose files are not checked is not kept, and serves again after the next flush."""
    with FaissStore(tmp_path / "s", index="RQ2x4", recall=0.1) as store:
        fill(store)
        assert store.index_info.factory == "RQ2x4"
    assert sorted(path.name for path in (tmp_path / "s").glob("*-*")) == ["segment-1-0.bin"]
    with FaissStore(tmp_path / "s", read_only=True) as store:
        assert store.index_info.factory == "Flat"
    with FaissStore(tmp_path / "s") as store:
        store.delete(["id 1"])
        store.flush()
        assert store.index_info.factory == "RQ2x4"


@pytest.mark.parametrize("index", ["IDMap," * 100_000 + "Flat", "A" * 20_000, "(" * 20_000, "Flat," * 4000])
def test_a_long_factory_string_is_refused(index: str) -> None:
    """No string reaches FAISS's parser that is longer than factory strings are."""
    with pytest.raises(InvalidInputError, match="index must have 100 characters at most"):
        FaissStore(index=index)


@pytest.mark.parametrize(
    "index", ["IMI2x14,Flat", "PQ1x17", "IVF5M,Flat", "LSH5000r", "PCA99999,Flat", "IVF8_HNSW999,Flat"]
)
def test_a_factory_string_takes_no_more_memory_than_there_is(index: str) -> None:
    """Numbers with which an empty index alone would fill the memory are refused by name."""
    with pytest.raises(InvalidInputError, match="must be between"):
        FaissStore(index=index)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_a_private_store_stays_private(folder: Path) -> None:
    """The files of the next generation have the permissions of the manifest before."""
    (folder / "MANIFEST.json").chmod(0o600)
    with FaissStore(folder) as store:
        store.delete(["id 1"])
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.name != "LOCK"}
    assert found == dict.fromkeys(["MANIFEST.json", "segment-2-0.bin"], 0o600)


@pytest.mark.parametrize("path", ["", ".", "missing/.."])
@pytest.mark.parametrize("kind", [MemoryStore, FaissStore])
def test_the_current_folder_is_not_replaced(
    tmp_path: Path, kind: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy is refused where it would put another folder in the place of the one this process is in."""
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    with pytest.raises(InvalidInputError, match=r"must not be empty|is the current folder"):
        fill(kind(), 3).save(path)
    assert (tmp_path.stat().st_ino, list(tmp_path.iterdir())) == (before, [])
    fill(kind(), 3).save("store")
    fill(kind(), 4).save("store")
    assert kind.load("store").count() == 4


def test_an_empty_folder_keeps_its_permissions(tmp_path: Path) -> None:
    """A copy that takes the place of an empty folder, through a link too, has its permissions."""
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("s")
    fill(MemoryStore(), 3).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    assert MemoryStore.load(tmp_path / "s").count() == 3


@pytest.mark.parametrize("victim", ["the parts", "the manifest"])
def test_a_folder_that_cannot_be_synced_is_told_truly(
    folder: Path, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the manifest is replaced the old generation is in force; after, the new one, and both stay."""
    sync, calls = _atomic.sync_folder, []

    def failing(path: Path) -> None:
        calls.append(path)
        if len(calls) > (0 if victim == "the parts" else 1):
            raise OSError(5, "Input/output error")
        sync(path)

    store = FaissStore(folder)
    store.delete(["id 1"])
    message = (
        "flushed before is intact" if victim == "the parts" else "may not be on the disk: .* may undo it"
    )
    with monkeypatch.context() as patch:
        patch.setattr(_atomic, "sync_folder", failing)
        with pytest.raises(StoreUnavailableError, match=message) as caught:
            store.flush()
    assert ("intact" in str(caught.value)) == (victim == "the parts")
    assert FaissStore.load(folder).count() == (30 if victim == "the parts" else 29)
    assert (folder / "records-1.sqlite").exists(), "a power cut may bring back the old manifest"
    store.close()
    assert FaissStore.load(folder).count() == 29
    assert not (folder / "records-1.sqlite").exists()


def test_a_copy_that_cannot_be_synced_is_told_truly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy has its name when the fsync of the folder around it fails, and the error says so."""

    def failing(path: Path) -> None:
        if Path(path) == tmp_path:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("clipretrieval._util.files.sync_folder", failing)
    with pytest.raises(StoreUnavailableError, match="was written but may not be on the disk"):
        fill(MemoryStore(), 3).save(tmp_path / "s")
    assert MemoryStore.load(tmp_path / "s").count() == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_damaged_and_crafted_folders_end_in_errors_of_ours() -> None:
    """Of a sample of mutations, with and without right checksums, none crashes, hangs or lies."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "mutations.py"), "--count", "60", "--seed", "7"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.stdout.endswith("120/120 an error of ours or a right answer\n"), found.stdout + found.stderr
