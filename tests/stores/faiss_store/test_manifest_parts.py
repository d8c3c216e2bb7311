"""A long value of a manifest has a file of its own, which a flush writes only where it has changed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_parts import seal

from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.base import view_manifest

LONG = [f"class {place}" for place in range(5000)]
MANIFEST: dict[str, Any] = {"a": 1, "classes": LONG, "z": [2]}
PART = "part-1-0.json"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"class 7", b"class 8", 1)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed store of twenty vectors and a manifest with a long value."""
    with FaissStore(tmp_path / "s") as store:
        add(store, 1)
        store.write_manifest(MANIFEST)
    return tmp_path / "s"


def add(store: FaissStore, value: int) -> None:
    store.upsert([str(place) for place in range(20)], np.full((20, 4), value), [value] * 20)


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "MANIFEST.json").read_text())
    return content


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("part-*"))


def test_a_long_value_comes_back_in_its_place(folder: Path) -> None:
    """It lies in a file, which the manifest names, and is read by all who open, copy or convert the store."""
    assert parts(folder) == [PART]
    content = content_of(folder)
    assert (content["format_version"], content["manifest"]) == (3, {**MANIFEST, "classes": None})
    assert (folder / "MANIFEST.json").stat().st_size < 2000
    with FaissStore(folder, read_only=True) as store:
        store.save(folder.with_name("copy"))
    with MemoryStore() as memory:
        memory.write_manifest(MANIFEST)
        memory.save(folder.with_name("memory"))
    for opened in (
        FaissStore(folder),
        FaissStore.load(folder.with_name("copy")),
        MemoryStore.load(folder.with_name("memory")),
    ):
        with opened:
            assert list(opened.read_manifest().items()) == list(MANIFEST.items())
            opened.read_manifest()["classes"].clear()
            assert opened.read_manifest() == MANIFEST


def test_a_flush_leaves_it_where_it_is(folder: Path) -> None:
    """Changes of records, and of the rest of the manifest, write nothing of it; its own change does."""
    before = (folder / PART).stat().st_mtime_ns
    with FaissStore(folder) as store:
        add(store, 2)
        store.flush()
        store.write_manifest({**view_manifest(store), "a": 2})
        store.flush()
        store.write_manifest({**MANIFEST, "a": 3})  # not the same object, but the same list
        store.compact()
    assert parts(folder) == [PART]
    assert (folder / PART).stat().st_mtime_ns == before
    with FaissStore(folder) as store:
        assert store.read_manifest() == {**MANIFEST, "a": 3}
        store.write_manifest({**MANIFEST, "classes": LONG[1:]})
    assert len(parts(folder)) == 1
    assert parts(folder) != [PART]
    with FaissStore(folder) as store:
        assert store.read_manifest()["classes"] == LONG[1:]
        store.write_manifest({"classes": LONG[:9]})
    assert not parts(folder)
    assert content_of(folder)["format_version"] == 2
    assert FaissStore.load(folder).read_manifest() == {"classes": LONG[:9]}


def test_a_reader_takes_it_up(folder: Path) -> None:
    """What a writer puts there is read by `refresh`; until then a reader has what it had."""
    with FaissStore(folder, read_only=True) as reader, FaissStore(folder) as writer:
        writer.write_manifest({**MANIFEST, "classes": LONG[::-1]})
        writer.flush()
        assert reader.read_manifest() == MANIFEST
        assert reader.refresh()
        assert reader.read_manifest()["classes"] == LONG[::-1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_to_whoever_reads_the_manifest(folder: Path, damage: str) -> None:
    """Vectors can be read and written; copies are damaged as well; writing the manifest again mends it."""
    kept = (folder / PART).read_bytes()
    DAMAGES[damage](folder / PART)
    with FaissStore(folder) as store:
        for _ in range(2):
            with pytest.raises(StoreCorruptedError, match=rf"{PART} is damaged: .*write the manifest again"):
                store.read_manifest()
        with pytest.raises(StoreCorruptedError, match="is damaged"):
            store.verify()
        add(store, 3)
        store.flush()
        assert store.get(["0"]).labels.tolist() == [3]
        store.save(folder.with_name("copy"))
    for place in (folder, folder.with_name("copy")):
        with FaissStore.load(place) as store, pytest.raises(StoreCorruptedError, match="is damaged"):
            store.read_manifest()
    shutil.copytree(folder, folder.with_name("restored"))
    (folder.with_name("restored") / PART).write_bytes(kept)
    assert FaissStore.load(folder.with_name("restored")).read_manifest() == MANIFEST
    with FaissStore(folder) as store:
        store.write_manifest(MANIFEST)
        assert store.read_manifest() == MANIFEST
    with FaissStore.load(folder) as store:
        assert store.read_manifest() == MANIFEST
        store.verify()


def test_what_is_written_by_hand_is_taken_from_who_writes_it(folder: Path) -> None:
    """A manifest that reads like a damaged part is written all the same."""
    text = (folder / PART).read_text().replace('"class 7"', '"class x"')
    (folder / PART).write_text(text)
    manifest = {**MANIFEST, "classes": json.loads(text)}
    with FaissStore(folder) as store:
        store.write_manifest(manifest)
        assert store.read_manifest() == manifest
    assert FaissStore.load(folder).read_manifest() == manifest


def test_long_keys_make_no_manifest_that_is_too_large(tmp_path: Path) -> None:
    """However long the keys, what was flushed is opened again."""
    for number, manifest in enumerate(({"k" * ((1 << 25) - 30): 1}, {"k" * 20_000: "v" * 20_000})):
        with FaissStore(tmp_path / str(number)) as store:
            add(store, 1)
            store.write_manifest(manifest)
        assert FaissStore.load(tmp_path / str(number)).read_manifest() == manifest


def test_deep_values_are_flushed_copied_and_read(tmp_path: Path) -> None:
    """Indentation does not multiply them; and who has gone too deep to read them is told just that."""
    deep: Any = []
    for _ in range(450):
        deep = [deep]
    manifest = {**{f"deep {place}": deep for place in range(2000)}, "long": [deep, LONG]}
    with FaissStore(tmp_path / "s") as store:
        add(store, 1)
        store.write_manifest(manifest)
    assert (tmp_path / "s" / "MANIFEST.json").stat().st_size < 3_000_000
    with FaissStore.load(tmp_path / "s") as store:

        def ask(depth: int) -> Any:
            return ask(depth - 1) if depth else store.read_manifest()

        with pytest.raises(RecursionError):
            ask(sys.getrecursionlimit() - 300)
        assert store.read_manifest() == manifest


def test_copies_do_not_depend_on_who_has_read(folder: Path) -> None:
    """A pickle holds the manifest once, whether or not it was parsed."""
    store = FaissStore()
    store.write_manifest(MANIFEST)
    size = len(pickle.dumps(store))
    for copied in (copy.deepcopy(store), pickle.loads(pickle.dumps(store))):
        assert copied.read_manifest() == view_manifest(copied) == MANIFEST
        assert abs(len(pickle.dumps(copied)) - size) < 200
    assert size < 1.1 * (folder / PART).stat().st_size + 5000


@pytest.mark.parametrize("name", ["index-3.json", "vectors-1.json", "blob-x-3.json", "part-1.json"])
def test_other_files_stay(folder: Path, name: str) -> None:
    """A file whose name only looks like a store's is nobody's to remove."""
    (folder / name).write_text("{}")
    with FaissStore(folder) as store:
        add(store, 2)
    assert (folder / name).exists()
    other = folder.with_name("other")
    other.mkdir()
    (other / name).write_text("{}")
    with pytest.raises(InvalidInputError, match="is not a store, and not empty"):
        FaissStore(other)


def test_what_is_no_json_is_told(folder: Path) -> None:
    """A part whose checksum is right, and which a store cannot have written, is damage too."""
    content = content_of(folder)
    (folder / PART).write_bytes(b"[NaN]")
    content["parts"]["classes"] |= {"size": 5, "sha256": hashlib.sha256(b"[NaN]").hexdigest()}
    seal(folder, content)
    with FaissStore(folder) as store:
        with pytest.raises(StoreCorruptedError, match=r"says of 'classes' is not JSON .*write the manifest"):
            store.read_manifest()
        store.write_manifest(MANIFEST)
        assert store.read_manifest() == MANIFEST


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format_version": 2}, "parts of the manifest do not go with format version 2"),
        ({"parts": {}}, "parts of the manifest do not go with format version 3"),
        ({"manifest": {"a": 1}}, "no place for its part 'classes'"),
        ({"manifest": {"classes": []}}, "no place for its part 'classes'"),
        ({"parts": {"classes": {"name": "../part-1-0.json"}}}, "is no name of a part"),
        ({"parts": {"classes": {"name": "part-99-0.json"}}}, "is no name of a part"),
        ({"parts": {"classes": {"size": -1}}}, "size"),
        ({"parts": {"classes": {"size": 1 << 40}}}, "size"),
        ({"parts": {"classes": {"sha256": "0"}}}, "is no SHA-256"),
        ({"parts": ["classes"]}, "malformed"),
    ],
    ids=str,
)
def test_a_manifest_that_cannot_be_is_refused(folder: Path, change: dict[str, Any], match: str) -> None:
    """Whatever it says of parts is checked when the folder is opened."""
    content = content_of(folder)
    for name, value in change.items():
        if name == "parts" and isinstance(value, dict) and value:
            content["parts"]["classes"] |= value["classes"]
        else:
            content[name] = value
    seal(folder, content)
    with pytest.raises(StoreCorruptedError, match=match):
        FaissStore(folder)
