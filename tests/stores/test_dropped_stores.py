"""Stores that are dropped without being closed: their files, threads, locks and connections are freed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from warm_process import run_warm

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import InvalidInputError, StoreError, StoreUnavailableError
from clipretrieval.stores import ChromaStore, FaissStore, PineconeStore
from clipretrieval.testing import PineconeEmulator

HELD = Path("/proc/self/fd")
pytestmark = pytest.mark.skipif(not HELD.is_dir(), reason="this system does not list a process's files")

X = np.random.default_rng(0).normal(size=(60, 8))
Y = [place % 3 for place in range(60)]

CROSS_VALIDATION = """
import os, resource, sys, time
import numpy as np
from sklearn.model_selection import cross_val_score
from clipretrieval import RetrievalClassifier

X, y = np.arange(120.0)[:, None], [place // 60 for place in range(120)]
held = lambda: [len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task")]
RetrievalClassifier(store="chroma").fit(X, y).predict(X)  # starts what is started once
before = held()
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
scores = cross_val_score(
    RetrievalClassifier(store="chroma"), X, y, cv=int(sys.argv[1]), error_score="raise"
)
assert len(scores) == int(sys.argv[1]) and scores.mean() > 0.95, scores
end, after = time.monotonic() + 30, held()
while (after[0] > before[0] or after[1] > before[1]) and time.monotonic() < end:
    time.sleep(0.01)  # Chroma ends its threads in the background
    after = held()
assert after[0] <= before[0] and after[1] <= before[1], (before, after)
"""

FORKED = """
import gc, os, sys
import numpy as np
from clipretrieval.stores import ChromaStore

store = ChromaStore(*sys.argv[2:])
store.upsert(["a", "b"], np.eye(2), ["x", "y"])
child = os.fork()
if child == 0:
    if sys.argv[1] == "exit":
        sys.exit()
    if sys.argv[1] == "close":
        store.close()
    store = None
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert store.search(np.eye(2), 1).labels.tolist() == [["x"], ["y"]]
store.upsert(["c"], np.ones((1, 2)), ["z"])
assert store.count() == 3
store.close()
assert ChromaStore(*sys.argv[2:]).count() == (3 if sys.argv[2:] else 0)
"""


def run(script: str, *arguments: Any) -> None:
    """Run a script in a process of its own, which has to succeed."""
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Collect garbage before, and not during a test: what it drops goes at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def files() -> int:
    return len(os.listdir(HELD))


def comes_down(to: int) -> bool:
    """Wait until no more files are open than before: Chroma closes those of a database in the background."""
    end = time.monotonic() + 30
    while files() > to and time.monotonic() < end:
        time.sleep(0.01)
    return files() <= to


def test_each_fold_of_a_cross_validation_frees_its_store() -> None:
    """Thirty folds with Chroma in memory fit under a limit of 80 open files, and leave none, nor threads."""
    run_warm(["-c", "import warnings; warnings.simplefilter('error')" + CROSS_VALIDATION, 30, 80], check=True)


def fill(store: Any) -> Any:
    store.upsert([str(place) for place in range(len(X))], X, Y)
    store.search(X[:1], 1)
    store.flush()
    return store


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("kind", [ChromaStore, FaissStore])
def test_a_folder_is_free_once_its_store_is_dropped(
    kind: type[ChromaStore | FaissStore], tmp_path: Path
) -> None:
    """The lock and the files of a dropped store are freed at once; what was flushed is there."""
    fill(kind(tmp_path / "warm"))
    before = files()
    for _ in range(3):
        store: Any = kind(tmp_path / "data")
        fill(store)
        del store
    assert comes_down(before)
    with kind(tmp_path / "data") as again:
        assert again.count() == len(X)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("closed", [True, False])
def test_connections_to_a_chroma_server_are_closed(chroma_port: int, closed: bool) -> None:
    """Neither sockets nor entries in Chroma's list of systems are left of a store, or of a failed attempt."""
    fill(ChromaStore(host="127.0.0.1", port=chroma_port))
    gc.collect()  # what Chroma raised when there was no collection refers to itself
    before, listed = files(), len(SharedSystemClient._identifier_to_system)
    for _ in range(3):
        store = fill(ChromaStore(host="127.0.0.1", port=chroma_port))
        if closed:
            store.close()
            store.close()
        del store
        with pytest.raises(StoreUnavailableError):
            ChromaStore(host="127.0.0.1", port=1)
    gc.collect()  # the exceptions' frames
    assert comes_down(before)
    assert len(SharedSystemClient._identifier_to_system) == listed


@pytest.mark.usefixtures("uncollected")
def test_connections_to_pinecone_are_closed() -> None:
    """Sockets of a dropped store are closed rather than left to the garbage collector, which would warn."""
    with PineconeEmulator("a-key") as emulator:
        for index in ("warm", "one", "two"):
            fill(PineconeStore(index, api_key="a-key", host=emulator.host)).close()
        before = files()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for index in ("one", "two"):
                store = PineconeStore(index, api_key="a-key", host=emulator.host)
                assert store.count() == len(X)
                del store
            gc.collect()
        assert [str(warning.message) for warning in caught] == []
        assert comes_down(before)


def test_a_store_is_freed_while_its_thread_holds_chromas_lock() -> None:
    """The garbage collector may come in the midst of Chroma's bookkeeping, and does not wait for its lock."""
    store: list[ChromaStore] = [fill(ChromaStore())]

    def drop() -> None:
        with SharedSystemClient._refcount_lock:
            store.clear()

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(("end", "folder"), [("exit", False), ("drop", False), ("close", True)])
def test_a_forked_process_frees_nothing_of_its_parents(end: str, folder: bool, tmp_path: Path) -> None:
    """It drops, closes or ends without waiting for threads that it lacks; the parent's store goes on."""
    run(FORKED, end, *([tmp_path / "data"] if folder else []))


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("name", ["chroma", "faiss", "memory"])
def test_a_store_made_by_name_goes_with_its_classifier(name: str) -> None:
    """Fits anew, failed fits and the classifier's end leave no open file behind."""
    RetrievalClassifier(store=name).fit(X, Y)
    before = files()
    classifier = RetrievalClassifier(store=name)
    for _ in range(3):
        classifier.fit(X, Y)
    with pytest.raises(InvalidInputError):
        classifier.fit(X, Y[:-1])
    del classifier
    gc.collect()  # the frames of the exception hold a store
    assert comes_down(before)


def test_a_store_that_somebody_holds_outlives_its_classifier() -> None:
    """`store_` goes on answering whoever took it, after the classifier was fitted anew and dropped."""
    classifier = RetrievalClassifier(store="chroma").fit(X, Y)
    taken = classifier.store_
    classifier.fit(X[:30], Y[:30])
    assert (taken.count(), classifier.store_.count()) == (60, 30)
    del classifier
    assert taken.search(X[:1], 1).labels.tolist() == [[0]]
    taken.close()


def test_threads_predict_while_another_fits_anew() -> None:
    """Each prediction ends with the store that it began with, though a fit replaces that meanwhile."""
    classifier = RetrievalClassifier(store="chroma").fit(X, Y)
    over, failures = threading.Event(), list[BaseException]()

    def ask() -> None:
        try:
            while not over.is_set():
                assert classifier.predict(X[:3]).tolist() == Y[:3]
        except BaseException as error:  # noqa: BLE001  reported below
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        classifier.fit(X, Y)
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_fitting_into_the_same_folder_again_tells_what_it_holds(tmp_path: Path) -> None:
    """The store that locks it is the classifier's own, and can be opened again where somebody closed it."""
    place: Callable[[], RetrievalClassifier] = lambda: RetrievalClassifier(  # noqa: E731
        store="chroma", store_options={"path": tmp_path / "data"}
    )
    classifier = place().fit(X, Y)
    with pytest.raises(InvalidInputError, match="already holds 60 vectors"):
        classifier.fit(X, Y)
    classifier.store_.close()
    with pytest.raises(InvalidInputError, match="already holds 60 vectors"):
        classifier.fit(X, Y)
    assert classifier.fit(X[:30], Y[:30], overwrite=True).store_.count() == 30
    with pytest.raises(StoreError, match="another store holds"):
        place().fit(X, Y)
