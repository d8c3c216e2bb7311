"""What the tests of ChromaStore share."""

from __future__ import annotations

from typing import Any

import numpy as np

METRICS = ["l2", "cosine", "ip"]


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def fill(store: Any, rows: Any, labels: Any = None) -> list[str]:
    """Put rows into a store under ids that do not sort in their order."""
    ids = [f"{37 * place % 101:03}-{place}" for place in range(len(rows))]
    store.upsert(ids, rows, [0] * len(rows) if labels is None else labels)
    return ids


def contents(store: Any, ids: list[str]) -> Any:
    """All that a store tells, to see that nothing changed."""
    records = store.get(ids)
    columns = (records.ids, records.vectors, records.labels)
    return store.count(), store.read_manifest(), records.metadata, [each.tolist() for each in columns]
