"""FaissStore conforms with every kind of index: exact, inverted lists, graphs and codes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from clipretrieval.stores import FaissStore, VectorStore
from clipretrieval.stores.faiss import factory as _factory
from clipretrieval.testing import VectorStoreTests


class Approximate(VectorStoreTests):
    """What the approximate indexes have in common; they are built from the first vectors on."""

    exact_vectors = ("l2", "ip")
    recall_floor = 0.95
    ties_by_id = False
    machine_settings: ClassVar[dict[str, Any]] = {"max_examples": 5}
    index: ClassVar[str]

    @pytest.fixture(autouse=True)
    def small(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_factory, "SMALLEST", 4)
            yield

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return FaissStore(folder if self.persistent else None, metric=metric, index=self.index)


class TestFlat(VectorStoreTests):
    """The flat index by its name, in a folder."""

    exact_vectors = ("l2", "ip")
    machine_settings: ClassVar[dict[str, Any]] = {"max_examples": 5}

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return FaissStore(folder, metric=metric, index="IDMap2,Flat")


class TestLists(Approximate):
    """Inverted lists of whole vectors, in a folder."""

    index = "IVF4,Flat"


class TestListsInMemory(Approximate):
    """Inverted lists of codes, in memory."""

    index = "IVF4,SQ8"
    persistent = False


class TestGraph(Approximate):
    """A graph, which cannot remove, in a folder."""

    index = "HNSW16"


class TestGraphInMemory(Approximate):
    """A graph of codes, in memory."""

    index = "HNSW16,SQfp16"
    persistent = False


class TestCodes(Approximate):
    """Half-precision codes, which are renumbered by a removal, in memory."""

    index = "SQfp16"
    persistent = False


del Approximate, VectorStoreTests
