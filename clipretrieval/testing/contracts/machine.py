"""The conformance suite's state machine, which holds a store against the MemoryStore."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from clipretrieval.errors import InvalidInputError
from clipretrieval.stores.base import BlobStore, ScannableStore, VectorStore
from clipretrieval.stores.memory import MemoryStore
from clipretrieval.testing.contracts.base import ContractBase, Stores, contents
from clipretrieval.testing.contracts.scan import scanned
from clipretrieval.testing.contracts.search import (
    check_arrays,
    check_distances,
    check_neighbor_labels,
    check_order,
    share_found,
)

__all__ = ["MachineContract"]

IDS = [*"abcdefgh", "é", "猫"]
MANIFESTS = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9) | st.text(max_size=3), max_size=2)
BLOBS = "ab"
METADATA: list[dict[str, Any]] = [{}, {"x": 1}, {"y": "z"}, {"x": 0.5, "y": True}]
SETTINGS: dict[str, Any] = {
    "max_examples": 20,
    "stateful_step_count": 20,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
Vectors: TypeAlias = npt.NDArray[np.float32]


class MachineContract(ContractBase):
    """Any sequence of calls leaves a store with what a MemoryStore holds."""

    def test_any_sequence_of_calls_agrees_with_memory(
        self, metric: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """After each of many random calls, contents and answers are those of a MemoryStore."""
        shares: list[float] = []
        root = tmp_path_factory.mktemp("machine")
        run_state_machine_as_test(
            lambda: Machine(self, metric, Stores(self, root), shares),  # type: ignore[arg-type]
            settings=settings(**{**SETTINGS, **self.machine_settings}),
        )
        # Recall is a property of many searches: one of them alone may miss.
        assert np.mean(shares or [1.0]) >= self.recall_floor, (
            f"searches found {np.mean(shares):.4f} of the true neighbors; recall_floor declares "
            f"{self.recall_floor}"
        )


class Machine(RuleBasedStateMachine):
    """A store beside the MemoryStore that it must equal.

    Coordinates are small integers: under l2 and ip their distances are exact in float32, and many tie.
    """

    def __init__(self, contract: ContractBase, metric: str, stores: Stores, shares: list[float]) -> None:
        super().__init__()
        self.contract, self.metric, self.stores, self.shares = contract, metric, stores, shares
        self.ids = IDS if contract.unicode_ids else [name for name in IDS if name.isascii()]

    @initialize()
    def create(self) -> None:
        self.memory = MemoryStore(self.metric)
        self.store: VectorStore = self.stores.new(self.metric)

    @rule(data=st.data())
    def upsert(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(self.ids), min_size=1, unique=True), "ids")
        vectors = self._vectors(data, len(ids))
        labels = data.draw(st.lists(st.integers(0, 9), min_size=len(ids), max_size=len(ids)), "labels")
        one = st.sampled_from(METADATA)
        lists = st.none() | st.lists(one, min_size=len(ids), max_size=len(ids))
        metadata = data.draw(lists, "metadata")
        self.memory.upsert(ids, vectors, labels, metadata)
        self.contract.put(self.store, ids, vectors, labels, metadata)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(self.ids)), "ids")
        assert self.contract.drop(self.store, ids) == self.memory.delete(ids), "delete counted wrongly"

    @rule(data=st.data(), k=st.integers(1, len(IDS) + 2))
    def search(self, data: st.DataObject, k: int) -> None:
        queries = self._vectors(data, data.draw(st.integers(1, 3), "number of queries"))
        near, truth = self.store.search(queries, k), self.memory.get(self.ids)
        check_arrays(near, len(queries), k, len(truth))
        check_distances(near, truth, queries, self.metric, self.contract.tolerance)
        check_order(near)
        check_neighbor_labels(near, truth)
        share = share_found(near, truth, queries, self.metric, self.contract.tolerance)
        self.shares.append(share)
        if self.contract.recall_floor == 1.0:
            assert share == 1.0, "a nearer vector was missed"
            if self.contract.ties_by_id and self.metric != "cosine":
                assert near.ids.tolist() == self.memory.search(queries, k).ids.tolist()

    @rule(manifest=MANIFESTS)
    def write_manifest(self, manifest: dict[str, Any]) -> None:
        self.memory.write_manifest(manifest)
        self.store.write_manifest(manifest)
        self.contract.settle(self.store)

    @precondition(lambda self: isinstance(self.store, BlobStore))
    @rule(name=st.sampled_from(BLOBS), content=st.none() | st.binary(max_size=9))
    def write_blob(self, name: str, content: bytes | None) -> None:
        self.memory.write_blob(name, content)
        cast("BlobStore", self.store).write_blob(name, content)
        self.contract.settle(self.store)

    @rule()
    def refuse(self) -> None:
        with pytest.raises(InvalidInputError):
            self.store.upsert(["a", "a"], self.contract.vectors([[1], [1]]), [1, 2])

    @precondition(lambda self: self.contract.persistent)
    @rule()
    def reopen(self) -> None:
        self.store = self.stores.reopened(self.store)

    @invariant()
    def same_contents(self) -> None:
        left, right = (contents(each, self.ids) for each in (self.store, self.memory))
        exact = self.metric in self.contract.exact_vectors
        vectors = left.pop("vectors"), right.pop("vectors")
        if right["count"]:
            np.testing.assert_allclose(*vectors, rtol=0 if exact else 1e-6)
            assert left == right
        else:  # a store may forget its dimension with its last vector
            assert {**left, "dim": None} == {**right, "dim": None}

    @invariant()
    def same_listing(self) -> None:
        if isinstance(self.store, ScannableStore):
            for label in (None, 1):
                found, right = scanned(self.store.scan(label)), scanned(self.memory.scan(label))
                assert found == right, "a scan listed wrongly"

    @invariant()
    def same_blobs(self) -> None:
        if isinstance(self.store, BlobStore):
            found, right = ([each.read_blob(name) for name in BLOBS] for each in (self.store, self.memory))
            assert found == right, "a blob is not as it was written"

    def teardown(self) -> None:
        self.stores.dispose()

    def _vectors(self, data: st.DataObject, count: int) -> Vectors:
        elements = st.integers(-3, 3).map(float)
        drawn = data.draw(hnp.arrays(np.float32, (count, 3), elements=elements), "vectors")
        if self.metric == "cosine":
            drawn[:, 0] = np.abs(drawn[:, 0]) + 1  # never zero
        return self.contract.vectors(drawn.tolist())
