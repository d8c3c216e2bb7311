"""Any sequence of calls leaves a FaissStore on disk and a MemoryStore with the same contents."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clipretrieval.errors import InvalidInputError
from clipretrieval.stores import FaissStore, MemoryStore

IDS = [*"abcdefgh", "é", "猫"]
DIM = 3
VALUES = st.integers(-3, 3).map(float) | st.floats(-1e4, 1e4, width=32)


def vectors(count: int) -> Any:
    return hnp.arrays(np.float32, (count, DIM), elements=VALUES)


class TwoStores(RuleBasedStateMachine):
    """A FaissStore in a folder, opened anew now and then, beside the MemoryStore that it must equal."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store"

    @initialize(metric=st.sampled_from(["l2", "ip"]))
    def create(self, metric: str) -> None:
        self.metric = metric
        self.memory = MemoryStore(metric)
        self.faiss = FaissStore(self.path, metric=metric)

    @rule(data=st.data(), ids=st.lists(st.sampled_from(IDS), min_size=1, unique=True))
    def upsert(self, data: st.DataObject, ids: list[str]) -> None:
        rows = data.draw(vectors(len(ids)))
        labels = data.draw(st.lists(st.integers(0, 9), min_size=len(ids), max_size=len(ids)))
        metadata = [{"of": name} for name in ids] if data.draw(st.booleans()) else None
        for store in (self.memory, self.faiss):
            store.upsert(ids, rows, labels, metadata)

    @rule(ids=st.lists(st.sampled_from(IDS)))
    def delete(self, ids: list[str]) -> None:
        assert self.memory.delete(ids) == self.faiss.delete(ids)

    @rule(data=st.data(), k=st.integers(1, 12))
    def search(self, data: st.DataObject, k: int) -> None:
        queries = data.draw(vectors(data.draw(st.integers(1, 25))))
        left, right = self.memory.search(queries, k), self.faiss.search(queries, k)
        assert left.ids.tolist() == right.ids.tolist()
        assert left.labels.tolist() == right.labels.tolist()
        assert left.distances.tobytes() == right.distances.tobytes()

    @rule(manifest=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2))
    def write_manifest(self, manifest: dict[str, Any]) -> None:
        for store in (self.memory, self.faiss):
            store.write_manifest(manifest)

    @rule()
    def refuse(self) -> None:
        for store in (self.memory, self.faiss):
            with pytest.raises(InvalidInputError):
                store.upsert(["a", "a"], np.ones((2, DIM)), [1, 2])

    @rule()
    def reopen(self) -> None:
        self.faiss.close()
        self.faiss = FaissStore(self.path, metric=self.metric)

    @rule()
    def copy(self) -> None:
        self.memory.save(Path(self.folder.name) / "copy")
        self.memory = MemoryStore.load(Path(self.folder.name) / "copy")

    @invariant()
    def same_contents(self) -> None:
        left, right = self.memory.get(IDS), self.faiss.get(IDS)
        assert self.memory.count() == self.faiss.count() == len(left)
        assert left.ids.tolist() == right.ids.tolist()
        assert left.labels.tolist() == right.labels.tolist()
        assert left.metadata == right.metadata
        if len(left):
            assert left.vectors.tobytes() == right.vectors.tobytes()
        assert self.memory.read_manifest() == self.faiss.read_manifest()

    def teardown(self) -> None:
        if hasattr(self, "faiss"):
            self.faiss.close()
        self.folder.cleanup()


TestTwoStores = TwoStores.TestCase
TestTwoStores.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
