"""What the parts of the conformance suite share: how stores are opened, and what they declare."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from clipretrieval.errors import StoreLockedError
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import Label, Metric

__all__ = ["ContractBase", "Stores", "contents", "names"]


class Stores:
    """Opens stores for one test, each in a folder of its own, and disposes of them at its end."""

    def __init__(self, contract: ContractBase, root: Path) -> None:
        self._contract = contract
        self._root = root
        self._open: list[tuple[VectorStore, str, Path]] = []

    def new(self, metric: str) -> VectorStore:
        """Return a new, empty store."""
        # Unique also among runs, for stores that outlive them on a server.
        folder = self._root / f"store-{uuid.uuid4().hex[:12]}"
        folder.mkdir()
        return self._opened(metric, folder)

    def reopened(self, store: VectorStore) -> VectorStore:
        """Close a store and return one opened in the same folder."""
        place = next(place for place, (each, *_) in enumerate(self._open) if each is store)
        _, metric, folder = self._open.pop(place)
        store.close()
        return self._opened(metric, folder)

    def beside(self, store: VectorStore) -> VectorStore:
        """Return what another process would open of the contents of a store that stays open."""
        _, metric, folder = next(each for each in self._open if each[0] is store)
        try:
            return self._opened(metric, folder)
        except StoreLockedError:
            # What a kill at this moment would leave: the files without the lock, and without this process.
            copied = folder.with_name(f"{folder.name}-copy")
            shutil.copytree(folder, copied)
            return self._opened(metric, copied)

    def dispose(self) -> None:
        """Dispose of all stores that are still open."""
        while self._open:
            store, _, folder = self._open.pop()
            self._contract.dispose(store, folder)

    def _opened(self, metric: str, folder: Path) -> VectorStore:
        store = self._contract.open_store(metric, folder)
        self._open.append((store, metric, folder))
        return store


class ContractBase:
    """The declarations and hooks of `VectorStoreTests`, which documents them."""

    metrics: ClassVar[Sequence[str]] = ("l2", "cosine", "ip")
    dim: ClassVar[int] = 8
    recall_floor: ClassVar[float] = 1.0
    ties_by_id: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-5
    exact_vectors: ClassVar[Sequence[str]] = ("l2", "cosine", "ip")
    persistent: ClassVar[bool] = True
    flushed_is_visible: ClassVar[bool] = True
    thread_safe: ClassVar[bool] = True
    unicode_ids: ClassVar[bool] = True
    json_metadata: ClassVar[bool] = True
    machine_settings: ClassVar[Mapping[str, Any]] = {}

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        """Open the store that belongs to a folder: **override this**.

        Parameters
        ----------
        metric : {"l2", "cosine", "ip"}
        folder : Path
            An existing folder, empty at first; its name is unique. A store that keeps its contents elsewhere
            takes the name for its collection. After the store was closed, the same folder must give the same
            contents again, unless `persistent` is False.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must override open_store(metric, folder), which returns the store to test"
        )

    def settle(self, store: VectorStore) -> None:
        """Return when what was written can be read; called after every write."""
        store.flush()

    def dispose(self, store: VectorStore, folder: Path) -> None:
        """Free what a store holds at the end of a test, on a server too."""
        store.close()

    @pytest.fixture(params=[metric.value for metric in Metric])
    def metric(self, request: pytest.FixtureRequest) -> str:
        """Each metric in turn."""
        metric: str = request.param
        if metric not in self.metrics:
            pytest.skip(f"{type(self).__name__}.metrics does not list {metric!r}")
        return metric

    @pytest.fixture
    def stores(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
        """Open stores, and dispose of them at the end."""
        stores = Stores(self, tmp_path_factory.mktemp("stores"))
        yield stores
        stores.dispose()

    @pytest.fixture
    def store(self, stores: Stores) -> VectorStore:
        """Open an empty store under the first of the declared metrics."""
        return stores.new(self.metrics[0])

    def put(
        self,
        store: VectorStore,
        ids: Sequence[str],
        vectors: npt.NDArray[Any],
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Upsert and wait until it can be read."""
        store.upsert(ids, vectors, labels, metadata)
        self.settle(store)

    def drop(self, store: VectorStore, ids: Sequence[str]) -> int:
        """Delete, wait until it shows, and return what delete returned."""
        removed = store.delete(ids)
        self.settle(store)
        return removed

    def vectors(self, rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
        """Return rows, filled up with zeros to the suite's dimension."""
        filled = np.zeros((len(rows), self.dim), dtype=np.float32)
        for place, row in enumerate(rows):
            filled[place, : len(row)] = row
        return filled

    def normal(self, seed: int, count: int) -> npt.NDArray[np.float32]:
        """Return `count` random vectors, normally distributed about the origin."""
        return np.random.default_rng(seed).standard_normal((count, self.dim), dtype=np.float32)


def names(count: int) -> list[str]:
    """Return distinct ids whose order is not that of their places."""
    return [f"{37 * place % 101:03}-{place}" for place in range(count)]


def contents(store: VectorStore, ids: Sequence[str]) -> dict[str, Any]:
    """Return all that a store tells of some ids, to be compared."""
    records = store.get(ids)
    return {
        "count": store.count(),
        "dim": store.dim,
        "ids": records.ids.tolist(),
        "vectors": records.vectors.tolist(),
        "labels": records.labels.tolist(),
        "metadata": records.metadata,
        "manifest": store.read_manifest(),
    }
