"""Stores that may hold what the tests add, and an encoder."""

from __future__ import annotations

import pytest
from colours import Colours

from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore


@pytest.fixture
def encoder() -> Colours:
    return Colours()


@pytest.fixture(params=["memory", "faiss", "faiss folder", "chroma", "chroma folder"])
def any_store(request, tmp_path):
    made = {
        "memory": lambda: MemoryStore(),
        "faiss": lambda: FaissStore(),
        "faiss folder": lambda: FaissStore(tmp_path / "faiss"),
        "chroma": lambda: ChromaStore(collection=f"online-{tmp_path.name[-40:]}"),
        "chroma folder": lambda: ChromaStore(tmp_path / "chroma"),
    }
    with made[request.param]() as store:
        yield store
