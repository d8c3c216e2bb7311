"""Two processes change one store: never do vectors of two encoders meet, and no class is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from second_writer import FAR, Shades, shade
from warm_process import WarmProcess, run_warm

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import StoreLockedError
from clipretrieval.stores import create_store
from clipretrieval.testing import PineconeEmulator

KEY = "two-writers"
pytestmark = pytest.mark.filterwarnings("ignore:there is only one class")


@pytest.fixture
def folder_store(tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """The name of a store that locks its folder, and options for it."""
    return "faiss", {"path": str(tmp_path / "store")}


@pytest.fixture(params=["chroma", "pgvector", "pinecone"])
def shared_store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of a store which others may write too, and options for it."""
    name = f"writers-{uuid4().hex[:12]}"
    if request.param == "lance":
        pytest.importorskip("lancedb")
        yield "lance", {"path": str(tmp_path / name)}
        return
    if request.param == "pgvector":
        yield "pgvector", {"conninfo": request.getfixturevalue("postgres").conninfo, "table": name}
        return
    if request.param == "chroma":
        port = request.getfixturevalue("chroma_port")
        yield "chroma", {"host": "127.0.0.1", "port": port, "collection": name}
        return
    monkeypatch.setenv("PINECONE_API_KEY", KEY)
    with PineconeEmulator(KEY, address="127.0.2.1") as emulator:
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", emulator.host)  # the key is for this host
        yield "pinecone", {"index": name, "host": emulator.host}


@contextmanager
def stopped(
    store: tuple[str, dict[str, Any]], action: str, stop: str, folder: Path
) -> Iterator[Callable[[], Any]]:
    """Wait until the second process has stopped; give what lets it go on and returns what it prints."""
    program = Path(__file__).with_name("second_writer.py")
    process = WarmProcess([program, store[0], json.dumps(store[1]), action, stop, folder])

    def go_on() -> Any:
        (folder / "go").touch()
        told, error = process.communicate(timeout=60)
        assert told, error
        return json.loads(told)

    try:
        deadline = time.monotonic() + 60
        while not (folder / "stopped").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the second process did not come so far"
            time.sleep(0.01)
        yield go_on
    finally:
        process.kill()
        process.communicate()


def begin(store: tuple[str, dict[str, Any]]) -> None:
    """Let the first encoder fill a store with one class."""
    with create_store(store[0], **store[1]) as opened:
        RetrievalClassifier(Shades(), opened).fit([shade(200), shade(201)], ["start", "start"])


def check_whole(store: tuple[str, dict[str, Any]]) -> dict[str, set[str]]:
    """Return the ids of each label; all vectors are of the encoder that the manifest names."""
    with create_store(store[0], **store[1]) as opened:
        found: dict[str, set[str]] = {}
        for listing in opened.scan():
            for name, label in zip(listing.ids.tolist(), listing.labels.tolist(), strict=True):
                found.setdefault(label, set()).add(name)
        manifest = opened.read_manifest()
        vectors = opened.get([name for names in found.values() for name in names]).vectors
        assert set((vectors[:, 0] > FAR / 2).tolist()) == {manifest["encoder"]["version"] == 2}
        assert manifest["classes"] == sorted(found)
    return found


@pytest.mark.parametrize("action", ["partial_fit", "fit", "resume", "overwrite"])
def test_nobody_comes_between_the_look_at_a_folder_and_the_writing(
    folder_store: Any, tmp_path: Path, action: str
) -> None:
    """While one process encodes, the folder is held: another encoder's overwrite is refused."""
    begin(folder_store)
    if action == "fit":
        with create_store(folder_store[0], **folder_store[1]) as emptied:
            RetrievalClassifier.from_store(emptied, Shades()).forget(label="start")
    with stopped(folder_store, action, "encoding", tmp_path) as go_on:
        with create_store(folder_store[0], **folder_store[1]) as second:
            intruder = RetrievalClassifier(Shades(2), second)
            with pytest.raises(StoreLockedError):
                intruder.fit([shade(3), shade(4)], ["two", "two"], overwrite=True)
        kept = {"start", "one"} if action in ("partial_fit", "resume") else {"one"}
        assert set(go_on()) == kept
    assert set(check_whole(folder_store)) == kept


@pytest.mark.parametrize("action", ["partial_fit", "forget", "relabel"])
def test_a_folder_that_was_filled_anew_since_it_was_opened_is_refused(
    folder_store: Any, tmp_path: Path, action: str
) -> None:
    """Another encoder overwrites the store after one process has opened it: that one changes nothing."""
    begin(folder_store)
    with stopped(folder_store, action, "opened", tmp_path) as go_on:
        with create_store(folder_store[0], **folder_store[1]) as second:
            RetrievalClassifier(Shades(2), second).fit([shade(1)], ["start"], overwrite=True)
        assert go_on() == "FingerprintMismatchError"
    assert set(check_whole(folder_store)) == {"start"}


EXCHANGE = """
import json, sys
from clipretrieval import RetrievalClassifier
from clipretrieval.stores import create_store
with create_store(sys.argv[1], **json.loads(sys.argv[2])) as store:
    near, far = ([n for each in store.scan(label) for n in each.ids.tolist()] for label in ("near", "far"))
    RetrievalClassifier.from_store(store).relabel(near + far, ["far"] * len(near) + ["near"] * len(far))
"""


@pytest.mark.parametrize("shared_store", ["chroma", "lance", "pgvector", "pinecone"], indirect=True)
def test_labels_that_a_voting_process_exchanges_are_noticed_at_a_server(shared_store: Any) -> None:
    """All counts are what they were; the statistics that another process holds are not."""
    rows = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    rows[10:] += 9
    with create_store(shared_store[0], **shared_store[1]) as opened:
        RetrievalClassifier(store=opened).fit(rows, ["near"] * 10 + ["far"] * 10)
        asked = RetrievalClassifier.from_store(opened, head="discriminant")
        assert asked.predict(rows).tolist() == ["near"] * 10 + ["far"] * 10
        run_warm(["-c", EXCHANGE, shared_store[0], json.dumps(shared_store[1])], check=True)
        assert asked.predict(rows).tolist() == ["far"] * 10 + ["near"] * 10


@pytest.mark.parametrize("action", ["partial_fit", "relabel"])
def test_a_class_that_another_has_added_stays(folder_store: Any, tmp_path: Path, action: str) -> None:
    """With the same encoder, what was added between opening and writing keeps its class in the manifest."""
    begin(folder_store)
    with stopped(folder_store, action, "opened", tmp_path) as go_on:
        with create_store(folder_store[0], **folder_store[1]) as second:
            RetrievalClassifier.from_store(second, Shades()).partial_fit([shade(3)], ["two"])
        known = set(go_on())
    assert {"one", "two"} <= known
    assert set(check_whole(folder_store)) == known


@pytest.mark.parametrize("action", ["resume", "fit"])
def test_without_a_lock_another_encoder_is_noticed(shared_store: Any, tmp_path: Path, action: str) -> None:
    """At a server another encoder may fill the store while one encodes: that one then stores nothing."""
    if action != "fit":
        begin(shared_store)
    with stopped(shared_store, action, "encoding", tmp_path) as go_on:
        with create_store(shared_store[0], **shared_store[1]) as second:
            RetrievalClassifier(Shades(2), second).fit([shade(3), shade(4)], ["two", "two"], overwrite=True)
        expected = "StoreLockedError" if action == "fit" else "FingerprintMismatchError"
        assert go_on() == expected
    assert set(check_whole(shared_store)) == {"two"}


@pytest.mark.parametrize("filled", [True, False])
def test_without_a_lock_no_class_is_lost(shared_store: Any, tmp_path: Path, filled: bool) -> None:
    """At a server two processes may add at once, to a store with images or to an empty one."""
    if filled:
        begin(shared_store)
    with stopped(shared_store, "partial_fit", "encoding", tmp_path) as go_on:
        with create_store(shared_store[0], **shared_store[1]) as second:
            RetrievalClassifier(Shades(), second).partial_fit([shade(2), shade(3)], ["two", "two"])
        known = set(go_on())
    assert known == {"one", "two"} | ({"start"} if filled else set())
    found = check_whole(shared_store)
    assert {label: len(names) for label, names in found.items() if label != "start"} == {"one": 2, "two": 1}
