"""PineconeStore loses nothing where the service fails, is late, or holds something else."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from pinecone import Pinecone
from pinecone_parts import KEY, Clock, hurried, names, normal, sent

from clipretrieval.errors import (
    DimensionMismatchError,
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreUnavailableError,
)
from clipretrieval.stores import IncompleteUpsertError
from clipretrieval.stores.pinecone import requests
from clipretrieval.testing import PineconeEmulator


@pytest.mark.parametrize(
    "options",
    [
        {"index": "Upper"},
        {"index": ""},
        {"index": "a" * 46},
        {"namespace": "é"},
        {"namespace": "x" * 401},
        {"namespace": "__clipretrieval_manifest__"},
        {"namespace": "__clipretrieval_blobs__x"},
        {"metric": "hamming"},
        {"timeout": 0},
        {"concurrency": 0},
        {"dim": 0},
        {"api_key": "with a newline\n"},
    ],
)
def test_malformed_options_are_refused(make: Any, options: Any) -> None:
    """Names, metrics and numbers out of range are refused at once."""
    with pytest.raises(InvalidInputError):
        make(**options)


def test_an_index_of_another_kind_is_refused(make: Any) -> None:
    """Another metric or dimension than the index has is named, and a missing index may not be made."""
    store = make()
    store.upsert(["a"], np.ones((1, 4)), [1])
    with pytest.raises(FingerprintMismatchError, match=r"euclidean.*cosine"):
        make(**{**store.location(), "metric": "cosine"})
    with pytest.raises(FingerprintMismatchError, match=r"4.*5"):
        make(**store.location(), dim=5)
    with pytest.raises(StoreUnavailableError, match="no-such"):
        make(index="no-such", create=False)


def test_an_index_that_another_process_makes_meanwhile(make: Any) -> None:
    """Two stores of one new index agree, or the second is told of the other dimension."""
    first, second, third = (make(index="contested") for _ in range(3))
    first.upsert(["a"], np.ones((1, 4)), [1])
    second.upsert(["b"], np.ones((1, 4)), [1])
    assert second.get(["a", "b"]).ids.tolist() == ["a", "b"]
    with pytest.raises(DimensionMismatchError):
        third.upsert(["c"], np.ones((1, 5)), [1])


def test_records_that_something_else_wrote_are_named(make: Any, emulator: PineconeEmulator) -> None:
    """A record without the store's fields is an error that names it, not a wrong answer."""
    store = make(index="foreign")
    store.upsert(["a"], np.ones((1, 4)), [1])
    with Pinecone(api_key=KEY, host=emulator.host) as client, client.index(name="foreign") as index:
        index.upsert(vectors=[("stranger", [1.0, 2.0, 3.0, 4.0], {"label": "x"})])
    for ask in (lambda: store.search(np.ones((1, 4)), 5), lambda: store.get(["stranger"])):
        with pytest.raises(StoreCorruptedError, match="stranger"):
            ask()


def test_three_thousand_vectors_arrive_once_each_though_a_third_of_the_requests_fails(
    make: Any, other: Any
) -> None:
    """Whether requests are refused, or applied and not answered: all vectors are there, and none twice."""
    flaky = other(visibility_delay=0.01)
    store = make(index="flaky", host=flaky.host, timeout=60)
    rows, ids = normal(12, 3000, 256), names(3000)
    store.upsert(ids[:10], rows[:10], list(range(10)))
    flaky.fail(1 / 3, ("429", "503", "cut"), script=("cut", "429", None, "503"), seed=0)
    for start in range(10, 3000, 299):
        part = slice(start, min(start + 299, 3000))
        store.upsert(ids[part], rows[part], list(range(part.start, part.stop)))
    store.flush()
    assert store.count() == 3000
    found = store.get(ids)
    flaky.heal()
    assert found.ids.tolist() == ids
    assert found.vectors.tobytes() == rows.tobytes()
    assert found.labels.tolist() == list(range(3000))
    assert sorted(fields["id"] for _, fields in flaky.contents("flaky").values()) == sorted(ids)
    faults = [each.fault for each in sent(flaky, "/vectors/upsert")]
    assert {"429", "503", "cut"} <= set(faults)


def test_it_retries_longer_than_the_sdk(make: Any, other: Any) -> None:
    """Six refusals in a row, more than the SDK's own retries, are overcome."""
    flaky = other()
    store = make(host=flaky.host)
    store.upsert(["a"], np.ones((1, 4)), [1])
    flaky.fail(script=["503"] * 6)
    assert store.search(np.ones((1, 4)), 1).ids.tolist() == [["a"]]


def test_a_request_that_hangs_holds_up_no_other(make: Any, other: Any) -> None:
    """Where the service asks for a long pause the call fails in time, and the next is sent at once."""
    flaky = other()
    store = make(host=flaky.host, timeout=30, concurrency=1)
    store.upsert(["a"], np.ones((1, 4)), [1])
    store.flush()
    flaky.fail(script=["429"], retry_after=40)
    with pytest.raises(StoreUnavailableError):
        store.search(np.ones((1, 4)), 1)
    assert store.search(np.ones((1, 4)), 1).ids.tolist() == [["a"]]


def test_an_upsert_that_fails_in_part_names_the_ids(make: Any, other: Any) -> None:
    """The parts that pass are stored; the error lists the ids of the others, and they can be sent again."""
    flaky = other()
    store = make(index="parts", host=flaky.host)
    rows, ids = normal(13, 2500, 2), names(2500)
    store.upsert(["first"], rows[:1], [0])
    flaky.fail(script=["echo"], paths=["/vectors/upsert"])
    with pytest.raises(IncompleteUpsertError) as caught:
        store.upsert(ids, rows, [0] * 2500)
    flaky.heal()
    missing = set(caught.value.ids)
    assert len(missing) in (500, 1000)
    assert set(store.get(ids).ids) == set(ids) - missing
    places = [place for place, name in enumerate(ids) if name in missing]
    store.upsert([ids[place] for place in places], rows[places], [0] * len(places))
    assert store.get(ids).vectors.tobytes() == rows.tobytes()


def test_an_upsert_to_a_broken_service_names_all_ids(make: Any, other: Any) -> None:
    """Where nothing is accepted, the error lists every id, those that were not tried too."""
    flaky = other()
    store = make(host=flaky.host, concurrency=2)
    store.upsert(["first"], np.ones((1, 2)), [0])
    flaky.fail(1.0, ("503",), paths=["/vectors/upsert"])
    with hurried(store, 0.5), pytest.raises(IncompleteUpsertError) as caught:
        store.upsert(names(5000), normal(14, 5000, 2), [0] * 5000)
    flaky.heal()
    assert caught.value.ids == names(5000)
    assert isinstance(caught.value, StoreUnavailableError)


def test_a_service_that_is_down_or_silent_is_given_up_in_time(
    make: Any, other: Any, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the service is gone, or hangs, every call fails, and waits for no answer beyond its deadline."""
    waits: list[float | None] = []

    class Answer(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            waits.append(timeout)
            return super().result(timeout)

    silent, gone = other(), other()
    stores = [make(host=each.host) for each in (silent, gone)]
    for store in stores:
        store.upsert(["a"], np.ones((1, 4)), [1])
        store.flush()
    silent.fail(1.0, ("slow",))
    gone.stop()
    monkeypatch.setattr(requests, "Future", Answer)
    for store in stores:
        calls: list[Callable[[], Any]] = [
            lambda store=store: store.search(np.ones((50, 4)), 1),
            store.read_manifest,
            lambda store=store: store.upsert(["b"], np.ones((1, 4)), [1]),
            lambda store=store: make(**store.location(), timeout=0.3),
        ]
        for call in calls:
            waits.clear()
            with hurried(store, 0.3), pytest.raises(StoreUnavailableError):
                call()
            assert 0 < len(waits) <= 50
            assert all(wait is not None and wait <= 0.3 + requests.GRACE for wait in waits)


@pytest.mark.parametrize("log_numbers", [True, False])
def test_flush_waits_until_writes_can_be_seen(make: Any, other: Any, clock: Clock, log_numbers: bool) -> None:
    """It gives up at its deadline, and returns once upserts and deletes show, with or without log numbers."""
    late = other(visibility_delay=math.inf, log_numbers=log_numbers)
    store = make(index="late", host=late.host, timeout=20)
    store.upsert(["a", "b"], normal(15, 2, 4), [1, 2])
    with pytest.raises(StoreUnavailableError):
        store.flush()
    assert 10 < clock.now <= 20
    late.catch_up()
    store.flush()
    assert store.search(normal(15, 2, 4), 1).ids.tolist() == [["a"], ["b"]]
    assert store.delete(["a"]) == 1
    with pytest.raises(StoreUnavailableError):
        store.flush()
    with pytest.raises(StoreUnavailableError):
        store.search(normal(15, 1, 4), 2)
    late.catch_up()
    store.flush()
    assert store.search(normal(15, 1, 4), 2).ids.tolist() == [["b", ""]]


def test_a_new_index_is_awaited(make: Any, other: Any, clock: Clock) -> None:
    """Vectors are sent once the new index is ready."""
    slow = other(creation_delay=math.inf)
    store = make(host=slow.host, timeout=20)
    with pytest.raises(StoreUnavailableError, match="ready"):
        store.upsert(["a"], np.ones((1, 4)), [1])
    assert 10 < clock.now <= 20
    slow.catch_up()
    store.upsert(["a"], np.ones((1, 4)), [1])
    assert store.count() == 1


def test_flush_has_one_deadline_for_all_that_it_asks(
    make: Any, other: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each answer takes most of the timeout, flush gives up before it has asked everything."""
    service = other(log_numbers=False)
    store = make(host=service.host, dim=2, concurrency=1)
    ids = names(3000)
    store.upsert(ids, normal(19, 3000, 2), [0] * 3000)
    start = len(service.requests)
    with monkeypatch.context() as patch:
        patch.setattr(clock, "monotonic", lambda: 0.8 * 60 * len(sent(service, "/vectors/fetch", start)))
        with pytest.raises(StoreUnavailableError):
            store.flush()
    assert len(sent(service, "/vectors/fetch", start)) == 2  # the second begins in time
    store.flush()
    assert len(sent(service, "/vectors/fetch", start)) > 4
    assert store.count() == 3000


@pytest.mark.parametrize("body", [b"<html>Log in</html>", b"{}", b"[]", b""])
def test_an_answer_that_is_not_pinecones_is_said_to_be_none(make: Any, body: bytes) -> None:
    """A proxy's page with status 200 means that the service was not reached: the error advises on it."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *told: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with pytest.raises(StoreUnavailableError, match="proxy"):
            make(host=f"http://127.0.0.1:{server.server_port}", timeout=5)
        server.shutdown()
        thread.join()
