"""What the tests of PineconeStore share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from clipretrieval.testing import PineconeEmulator

KEY = "pcsk_test_0123456789abcdefghijklmnop"


METRICS = ["l2", "cosine", "ip"]


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def names(count: int) -> list[str]:
    """Ids whose order is not that of their places, some of which Pinecone does not take."""
    return [f"{37 * place % 101:03}-{place}{'é' * (place % 3)}" for place in range(count)]


def sent(emulator: PineconeEmulator, path: str, start: int = 0) -> list[Any]:
    return [each for each in emulator.requests[start:] if each.path == path]


@contextmanager
def hurried(store: Any, seconds: float) -> Iterator[None]:
    """Give a store's requests so little time; what has to succeed has as much as a busy machine needs."""
    requests = store._session._requests
    before, requests.timeout = requests.timeout, seconds
    yield
    requests.timeout = before


@contextmanager
def all_sent() -> Iterator[None]:
    """Wait at the end for the requests begun since, and for all that they will ever send."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name == "clipretrieval-pinecone":
            thread.join()


class Clock:
    """Stands in for the module `time` in PineconeStore: its time is what the store has slept."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def contents(store: Any, ids: list[str]) -> dict[str, Any]:
    """All that a store tells of some ids."""
    records = store.get(ids)
    columns = {name: getattr(records, name).tolist() for name in ("ids", "vectors", "labels")}
    return {
        **columns,
        "metadata": records.metadata,
        "count": store.count(),
        "manifest": store.read_manifest(),
    }


def same_neighbors(left: Any, right: Any, tolerance: float) -> None:
    assert left.ids.tolist() == right.ids.tolist()
    assert left.labels.tolist() == right.labels.tolist()
    assert left.labels.dtype == right.labels.dtype
    assert left.distances.dtype == np.float32
    np.testing.assert_allclose(left.distances, right.distances, rtol=tolerance, atol=tolerance)
