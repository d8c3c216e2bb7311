"""The conformance suite, passed by the stores for vectors in memory, in Chroma and in Pinecone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from postgres_server import PostgresServer

from clipretrieval.stores import (
    ChromaStore,
    LanceStore,
    MemoryStore,
    PgVectorStore,
    PineconeStore,
    VectorStore,
)
from clipretrieval.stores.chroma import records
from clipretrieval.testing import PineconeEmulator, VectorStoreTests

KEY = "pcsk_conformance_0123456789abcdef"


class TestMemoryStore(VectorStoreTests):
    """The MemoryStore conforms."""

    persistent = False

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return MemoryStore(metric)


class ChromaTests(VectorStoreTests):
    """What is declared of ChromaStore wherever its collection lives; each metric is tried in a folder."""

    # Chroma normalises vectors under cosine.
    exact_vectors = ("l2", "ip")

    machine_settings: ClassVar[dict[str, Any]] = {"max_examples": 4}

    @pytest.fixture(autouse=True)
    def _sparse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have Chroma build a graph in a third of the time, as these searches read all vectors instead."""
        monkeypatch.setattr(records, "GRAPH", {"ef_construction": 16, "max_neighbors": 4})

    def settle(self, store: VectorStore) -> None:
        """Need nothing: a write that returned is durable and seen."""


class TestChromaMemory(ChromaTests):
    """The ChromaStore in memory conforms."""

    metrics = ("ip",)
    persistent = False

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return ChromaStore(collection=folder.name, metric=metric)


class TestChromaFolder(ChromaTests):
    """The ChromaStore in a folder conforms."""

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return ChromaStore(folder, metric=metric)


class TestChromaServer(ChromaTests):
    """The ChromaStore at Chroma's own server conforms."""

    metrics = ("cosine",)

    @pytest.fixture(autouse=True)
    def _server(self, chroma_port: int) -> None:
        self.port = chroma_port

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return ChromaStore(host="127.0.0.1", port=self.port, collection=folder.name, metric=metric)


@pytest.fixture(scope="module")
def emulator() -> Iterator[PineconeEmulator]:
    """An emulator at an address of its own: the SDK keeps a retry budget for each."""
    with PineconeEmulator(KEY, address="127.0.0.9") as emulator:
        yield emulator


class TestPineconeStore(VectorStoreTests):
    """The PineconeStore conforms at the emulator."""

    machine_settings: ClassVar[dict[str, Any]] = {"max_examples": 5}

    @pytest.fixture(autouse=True)
    def _service(self, emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PINECONE_API_KEY", KEY)
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", emulator.host)
        self.host = emulator.host

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return PineconeStore(folder.name, metric=metric, dim=self.dim, host=self.host)


class TestPgVectorStore(VectorStoreTests):
    """The PgVectorStore conforms at a PostgreSQL server."""

    machine_settings: ClassVar[dict[str, Any]] = {"max_examples": 5}

    @pytest.fixture(autouse=True)
    def _server(self, postgres: PostgresServer) -> None:
        self.conninfo = postgres.conninfo

    def settle(self, store: VectorStore) -> None:
        """Need nothing: a write that returned is durable and seen."""

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return PgVectorStore(self.conninfo, table=folder.name, metric=metric)


class TestLanceStore(VectorStoreTests):
    """The LanceStore conforms in a folder."""

    machine_settings: ClassVar[dict[str, Any]] = {"max_examples": 2}

    def settle(self, store: VectorStore) -> None:
        """Need nothing: a write that returned is durable and seen."""

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        pytest.importorskip("lancedb")
        return LanceStore(folder, metric=metric)
