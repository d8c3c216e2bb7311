"""Emulators of Pinecone, and PineconeStores at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pinecone_parts import KEY

from clipretrieval.stores import PineconeStore
from clipretrieval.testing import PineconeEmulator

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
