"""PineconeStore keeps its key secret, when it is closed, copied and saved too."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pinecone_parts import KEY, hurried, normal

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import (
    InvalidInputError,
    StoreError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import PineconeStore
from clipretrieval.testing import PineconeEmulator


def test_a_wrong_key_is_said_to_be_refused(make: Any) -> None:
    """The error tells that the key was refused, not that the service is down."""
    with pytest.raises(StoreUnavailableError, match="refused the API key"):
        make(api_key="pcsk_another_key")


def test_the_key_may_come_from_the_environment(
    make: Any, emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PINECONE_API_KEY serves in place of the argument; without both, the error names it."""
    monkeypatch.setenv("PINECONE_API_KEY", KEY)
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", emulator.host)
    make(api_key=None).upsert(["a"], np.ones((1, 4)), [1])
    monkeypatch.delenv("PINECONE_API_KEY")
    with pytest.raises(InvalidInputError, match="PINECONE_API_KEY"):
        make(api_key=None)


def told(error: BaseException | None, seen: set[int] | None = None) -> str:
    """All that an exception tells, with its attributes, causes and contexts."""
    seen = set() if seen is None else seen
    if error is None or id(error) in seen:
        return ""
    seen.add(id(error))
    own = [
        repr(error),
        str(error),
        repr(error.args),
        repr(vars(error)),
        "".join(traceback.format_exception(error)),
    ]
    return "".join([*own, told(error.__cause__, seen), told(error.__context__, seen)])


def test_the_key_leaks_nowhere(make: Any, other: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither representations, nor logs, nor any error and what led to it hold the key or its end."""
    caplog.set_level(logging.DEBUG)
    emulator = other()
    store = make(index="secret", host=emulator.host)
    store.upsert(["a"], np.ones((1, 4)), [1])
    texts = [repr(store), str(store), repr(vars(store)), repr(store.location())]
    texts += [repr(value) for value in vars(store._session).values()]
    calls: list[Callable[[], Any]] = [
        store.count,
        lambda: store.search(np.ones((1, 4)), 1),
        lambda: store.get(["a"]),
        lambda: store.upsert(["b"], np.ones((1, 4)), [1]),
        lambda: store.write_manifest({}),
        lambda: make(index="secret", host=emulator.host, timeout=0.4),
    ]
    wrong = KEY[::-1]
    for kinds in (("echo",), ("503",), ("cut",)):
        emulator.fail(1.0, kinds)
        for call in calls if kinds == ("echo",) else calls[:2]:
            with hurried(store, 0.4), pytest.raises(StoreError) as caught:
                call()
            texts.append(told(caught.value))
    emulator.heal()
    for key in (wrong, f"{KEY}\n"):
        with pytest.raises((StoreUnavailableError, InvalidInputError)) as refused:
            PineconeStore("secret", api_key=key, host=emulator.host)
        texts.append(told(refused.value))
    with pytest.raises(UnsupportedOperationError) as pickled:
        pickle.dumps(store)
    texts.append(told(pickled.value))
    texts += [caplog.text, *(repr(vars(record)) for record in caplog.records)]
    assert caplog.records
    for text in texts:
        for secret in (KEY, KEY[-4:], wrong, wrong[-4:]):
            assert secret not in text


def test_it_cannot_be_pickled_or_copied(make: Any) -> None:
    """Pickles and copies, which would carry the key, are refused."""
    store = make()
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(UnsupportedOperationError):
            attempt(store)


def test_a_closed_store_refuses_everything(make: Any) -> None:
    """After `close` every method but `close` raises."""
    store = make()
    store.upsert(["a"], np.ones((1, 4)), [1])
    store.close()
    store.close()
    calls: list[Callable[[], Any]] = [
        store.count,
        store.flush,
        store.read_manifest,
        lambda: store.write_manifest({}),
        lambda: store.search(np.ones((1, 4)), 1),
        lambda: store.get(["a"]),
        lambda: store.delete(["a"]),
        lambda: store.upsert(["a"], np.ones((1, 4)), [1]),
    ]
    for call in calls:
        with pytest.raises(StoreError):
            call()
    assert "closed" in repr(store)
    with make(**store.location()) as again:
        assert again.count() == 1


def test_a_classifier_is_saved_without_its_key(
    emulator: PineconeEmulator, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier on Pinecone predicts as one in memory does; saved, it holds the location and no key."""
    rows, labels = normal(18, 60, 6), ["even", "odd"] * 30
    options = {"index": "classes", "api_key": KEY, "host": emulator.host}
    classifier = RetrievalClassifier(store=PineconeStore(**options), k=3).fit(rows, labels)
    expected = RetrievalClassifier(store="memory", k=3).fit(rows, labels).predict(rows + 0.2).tolist()
    assert classifier.predict(rows + 0.2).tolist() == expected
    classifier.save(tmp_path / "saved")
    kept = [path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert kept
    assert not any(KEY.encode() in each for each in kept)
    monkeypatch.setenv("PINECONE_API_KEY", KEY)
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", emulator.host)
    loaded = RetrievalClassifier.load(tmp_path / "saved", allow_remote=True)
    assert loaded.predict(rows + 0.2).tolist() == expected
    classifier.store_.close()
    loaded.store_.close()


@pytest.mark.parametrize("given", [True, False])
def test_the_key_is_in_no_local_variable_of_a_traceback(
    other: Any, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    """Tracebacks with local variables show the store, whether it is open or half made, and never the key."""
    emulator = other()
    monkeypatch.setenv("PINECONE_API_KEY", KEY)
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", emulator.host)
    own = {"api_key": KEY} if given else {}
    options = {"host": emulator.host, "timeout": 2.0}
    store = PineconeStore("framed", **options, **own)
    store.upsert(["a"], np.ones((1, 4)), [1])
    calls: list[Callable[[], Any]] = [
        lambda: store.search(np.ones((1, 4)), 1),
        lambda: store.upsert(["a"], np.ones((1, 4)), [1]),
        lambda: store.delete(["a"]),
        lambda: PineconeStore("other", **options, **own),
        lambda: PineconeStore("other", metric="hamming", **options, **own),
        lambda: PineconeStore("Other", **options, **own),
    ]
    emulator.fail(1.0, ("echo",))
    for call in calls:
        with pytest.raises((StoreError, InvalidInputError)) as caught:
            call()
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        # The frames before these are the test's own, which hold the key by themselves.
        shown.stack[:] = [frame for frame in shown.stack if "clipretrieval/stores" in frame.filename]
        text = "".join(shown.format())
        assert "self = PineconeStore(" in text
        assert KEY not in text
    emulator.heal()
    store.close()
