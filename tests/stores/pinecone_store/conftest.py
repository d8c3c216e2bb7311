"""Emulators of Pinecone, and PineconeStores at them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pinecone_parts import KEY, Clock

from clipretrieval.stores import PineconeStore
from clipretrieval.stores.pinecone import namespace, requests, session
from clipretrieval.testing import PineconeEmulator
from clipretrieval.testing.pinecone_emulator import server

NUMBERS = iter(range(10**9))
ADDRESSES = iter(range(1, 255))


@pytest.fixture(scope="module")
def emulator() -> Iterator[PineconeEmulator]:
    """An emulator that all well-behaved tests share."""
    with PineconeEmulator(KEY) as emulator:
        yield emulator


@pytest.fixture
def other() -> Iterator[Callable[..., PineconeEmulator]]:
    """Start emulators that may break, each at an address of its own: the SDK keeps a budget for each."""
    started: list[PineconeEmulator] = []

    def start(**options: Any) -> PineconeEmulator:
        started.append(PineconeEmulator(KEY, address=f"127.0.1.{next(ADDRESSES)}", **options))
        return started[-1]

    yield start
    for emulator in started:
        emulator.stop()


@pytest.fixture
def make(emulator: PineconeEmulator, other: Any) -> Iterator[Callable[..., PineconeStore]]:
    """Open stores, by default each in a new index at the shared emulator, and close them at the end."""
    made: list[PineconeStore] = []

    def make_store(**options: Any) -> PineconeStore:
        options = {"index": f"index-{next(NUMBERS)}", "api_key": KEY, "host": emulator.host, **options}
        made.append(PineconeStore(**options))
        return made[-1]

    yield make_store
    for store in made:
        store.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time by which stores keep their deadlines, for tests that no slow machine may change."""
    clock = Clock()
    for module in (namespace, requests, session):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Have the emulators' slow answers wait until this is set, whatever their delay."""
    go_on = threading.Event()
    monkeypatch.setattr(server, "time", SimpleNamespace(sleep=lambda _: go_on.wait()))
    yield go_on
    go_on.set()
