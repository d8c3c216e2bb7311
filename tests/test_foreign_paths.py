"""Paths that are not ASCII, or not even UTF-8: what is kept there is found again."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipretrieval import InvalidInputError, RetrievalClassifier, StagedEncoder
from clipretrieval.stores import FaissStore
from clipretrieval.stores.faiss.files import CAN_MAP

ROWS = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
LABELS = (np.arange(2000) % 3).tolist()
NAMES = [str(number) for number in range(2000)]


@pytest.fixture(params=["日本 café", b"caf\xe9"], ids=["unicode", "bytes"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder whose name is not ASCII, or not UTF-8."""
    found = tmp_path / os.fsdecode(request.param)
    try:
        found.mkdir()
    except (OSError, ValueError):
        pytest.skip("this file system has no such names")
    return found


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("index", ["Flat", "IVF16,Flat", "HNSW8", "IVF16,SQ8"])
def test_index_is_read_and_mapped(folder: Path, index: str, mmap: bool) -> None:
    """Every kind of index is read or mapped from such a path, and changed there."""
    if mmap and not CAN_MAP:
        pytest.skip("this FAISS cannot map files")
    with FaissStore(folder / "s", index=index) as store:
        store.upsert(NAMES, ROWS, LABELS)
        store.flush()
        wanted = store.search(ROWS[:20], 5)
    with FaissStore(folder / "s", read_only=True, mmap=mmap) as store:
        found = store.search(ROWS[:20], 5)
        assert found.ids.tolist() == wanted.ids.tolist()
        assert store.get(NAMES).vectors.tobytes() == ROWS.tobytes()
    with FaissStore(folder / "s") as store:
        store.delete(NAMES[:1000])
    assert FaissStore.load(folder / "s").count() == 1000


@pytest.mark.skipif(not CAN_MAP, reason="this FAISS cannot map files")
def test_mapped_file_stays_while_the_index_is_used(tmp_path: Path) -> None:
    """A mapped index answers after its files are gone, however much is collected meanwhile."""
    with FaissStore(tmp_path / "s", index="IVF16,Flat") as store:
        store.upsert(NAMES, ROWS, LABELS)
    reader = FaissStore(tmp_path / "s", read_only=True, mmap=True)
    if sys.platform != "win32":
        shutil.rmtree(tmp_path / "s")
    gc.collect()
    assert reader.get(NAMES).vectors.tobytes() == ROWS.tobytes()
    assert reader.index_info.factory == "IVF16,Flat"


@pytest.mark.parametrize("store", ["faiss", "memory"])
def test_classifier_is_saved_and_loaded(folder: Path, tmp_path: Path, store: str) -> None:
    """A classifier is found again in such a folder, and also where its store alone lies there."""
    options = {"path": folder / "store"} if store == "faiss" else {}
    made = RetrievalClassifier(store=store, store_options=options).fit(ROWS, LABELS)
    wanted = made.predict(ROWS[:50] + 0.01).tolist()
    for place in (folder / "kept", tmp_path / "kept"):
        made.save(place)
        assert RetrievalClassifier.load(place).predict(ROWS[:50] + 0.01).tolist() == wanted
    made.store_.close()
    with_store = RetrievalClassifier.load(folder / "kept")
    with_store.partial_fit(ROWS[:10] + 9, [7] * 10)
    with_store.save(folder / "kept")
    with_store.store_.close()
    assert 7 in RetrievalClassifier.load(folder / "kept").classes_


def test_chroma_says_that_it_cannot(tmp_path: Path) -> None:
    """Chroma takes UTF-8 only, and that is said before anything is made."""
    pytest.importorskip("chromadb")
    place = tmp_path / os.fsdecode(b"caf\xe9")
    made = RetrievalClassifier(store="chroma", store_options={"path": place})
    with pytest.raises(InvalidInputError, match="the path of a Chroma folder is not valid Unicode"):
        made.fit(ROWS[:10], LABELS[:10])
    assert list(tmp_path.iterdir()) == []


def test_reports_name_such_files(folder: Path, class_folder: Path, command: Any) -> None:
    """The command reads images there, and writes reports, predictions and lines of JSON that can be read."""
    (folder / "images").symlink_to(class_folder)
    images, kept = folder / "images", folder / "kept"
    assert command("index", images / "train", kept, "--stage", "pixel")[0] == 0
    assert command("info", kept, "--json")[0] == 0
    status, out, _ = command("classify", kept, images / "test", "--json", "--explain")
    assert (status, len(out.splitlines())) == (0, 10)
    assert all(json.loads(line)["path"] for line in out.splitlines())
    files = {name: folder / f"report.{name}" for name in ("json", "html", "markdown")}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    status, out, err = command(
        *("evaluate", "--classifier", kept, "--test", images / "test", *options),
        *("--predictions", folder / "answers.csv"),
    )
    assert status == 0, err
    assert json.loads(files["json"].read_text("utf-8"))["n_test"] == 10
    assert len((folder / "answers.csv").read_text("utf-8").splitlines()) == 11


def test_class_folder_that_is_not_unicode_is_refused_first(tmp_path: Path, class_folder: Path) -> None:
    """A label cannot be kept in bytes that are no text: that is said before an image is read."""
    try:
        (tmp_path / os.fsdecode(b"caf\xe9")).symlink_to(class_folder / "train" / "temple")
    except (OSError, ValueError):
        pytest.skip("this file system has no such names")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(InvalidInputError, match=r"the label 'caf\\udce9' is not valid Unicode"):
        RetrievalClassifier(StagedEncoder(stage="pixel"), "memory").fit(tmp_path)
