"""The limit on open files: errors say that it was reached, and nothing is taken for damaged because of it."""

from __future__ import annotations

import gc
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.errors import StoreUnavailableError
from clipretrieval.images import SkippedImage, iter_images
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore
from clipretrieval.stores.local import format1 as _format1

resource = pytest.importorskip("resource")

X = np.random.default_rng(0).normal(size=(300, 8))
Y = [place % 3 for place in range(300)]
IDS = [str(place) for place in range(300)]


@pytest.fixture(autouse=True)
def _little_to_collect() -> None:
    """Have `open_files_left` look for forgotten files among what the test makes alone."""
    gc.collect()
    gc.freeze()  # for good: to unfreeze would have every later collection go through what all tests share


@contextmanager
def open_files_left(count: int) -> Iterator[None]:
    """Let the block open so many files and no more."""
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    held: list[int] = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.dup(0))
        for descriptor in held[len(held) - count :]:
            os.close(descriptor)
        del held[len(held) - count :]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in held:
            os.close(descriptor)


def succeeds_or_tells_of_the_limit(action: Callable[[], Any], most: int) -> None:
    """Try with ever more files left, up to some with which it has to succeed."""
    told: list[str] = []
    for count in range(most):
        with open_files_left(count):
            try:
                action()
            except StoreUnavailableError as error:
                told.append(str(error))
            else:
                if told:  # otherwise a thread was still closing what the test had opened before
                    break
    else:
        raise AssertionError(f"with up to {most} files left it told {told}, and did not succeed after that")
    assert all("ulimit -n" in text for text in told), told


def test_a_folder_that_cannot_be_opened_now_is_not_damaged(tmp_path: Path) -> None:
    """FaissStore and MemoryStore fail to open, to flush and to save by naming the limit, and then succeed."""
    for index in ("Flat", "IVF4,Flat"):
        with FaissStore(tmp_path / index, index=index) as store:
            store.upsert(IDS, X, Y)
        for mmap in (False, True):
            options: dict[str, Any] = {"read_only": True, "mmap": mmap}
            succeeds_or_tells_of_the_limit(lambda: FaissStore(tmp_path / index, **options).close(), 20)  # noqa: B023
    with FaissStore(tmp_path / "Flat") as store:

        def add() -> None:
            store.upsert(["new"], X[:1], Y[:1])
            store.flush()

        succeeds_or_tells_of_the_limit(add, 20)
    with FaissStore(tmp_path / "Flat", read_only=True) as store:
        assert store.count() == 301
    memory = MemoryStore()
    memory.upsert(IDS, X, Y)
    succeeds_or_tells_of_the_limit(lambda: memory.save(tmp_path / "copy"), 20)
    assert MemoryStore.load(tmp_path / "copy").count() == 300


def test_sqlite_which_does_not_say_why_may_have_met_the_limit(tmp_path: Path) -> None:
    """What SQLite alone cannot open, as other threads took the last file before it, names the limit."""
    path = tmp_path / "records.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(_format1.SCHEMA)
        connection.execute("INSERT INTO records VALUES (0, 'a', 1, '{}', 1.0)")
    with open_files_left(0), pytest.raises(OSError, match="ulimit -n"):
        _format1._read_records(path, 1)
    assert _format1._read_records(path, 1).ids.tolist() == ["a"]


def test_chroma_is_unavailable_then_and_not_damaged(tmp_path: Path, capfd: Any) -> None:
    """Chroma, which panics, says so in memory, in a new folder and in one that it made."""
    with ChromaStore(tmp_path / "data") as store:
        store.upsert(IDS, X, Y)
    succeeds_or_tells_of_the_limit(lambda: ChromaStore().close(), 40)
    succeeds_or_tells_of_the_limit(lambda: ChromaStore(tmp_path / "new").close(), 40)
    succeeds_or_tells_of_the_limit(lambda: ChromaStore(tmp_path / "data").close(), 40)
    with ChromaStore(tmp_path / "data") as store:
        assert store.count() == 300
    capfd.readouterr()  # the traces of Rust


def test_a_saved_classifier_is_unavailable_then_and_not_damaged(tmp_path: Path) -> None:
    """Neither saving nor loading blames the folder."""
    classifier = RetrievalClassifier().fit(X, Y)
    classifier.save(tmp_path / "first")  # imports what it needs
    succeeds_or_tells_of_the_limit(lambda: classifier.save(tmp_path / "kept"), 20)
    succeeds_or_tells_of_the_limit(lambda: RetrievalClassifier.load(tmp_path / "kept"), 20)
    assert (RetrievalClassifier.load(tmp_path / "kept").predict(X) == Y).all()


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_no_image_is_skipped_because_of_it(tmp_path: Path, on_error: str) -> None:
    """An image that could not be opened is no undecodable one: reading ends, whatever is to be skipped."""
    paths = [tmp_path / f"{place}.png" for place in range(3)]
    for place, path in enumerate(paths):
        Image.new("RGB", (4, 4), (place, 0, 0)).save(path)
    encoder = StagedEncoder(stage="pixel")
    classifier = RetrievalClassifier(encoder, "memory").fit(paths, ["a", "b", "c"])
    skipped: list[SkippedImage] = []
    actions: list[Callable[[], Any]] = [
        lambda: list(iter_images(paths, on_error=on_error, skipped=skipped)),
        lambda: encoder.encode(paths, on_error=on_error),
        lambda: classifier.predict(paths, on_error=on_error),
    ]
    for action in actions:
        with open_files_left(0), pytest.raises(StoreUnavailableError, match=r"0\.png.*ulimit -n"):
            action()
        action()
    assert skipped == []
