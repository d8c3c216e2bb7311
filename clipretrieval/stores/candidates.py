"""What stores share that search at a database: its candidates compared exactly, or all that it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clipretrieval.stores.exact import nearest_rows
from clipretrieval.stores.faiss.store import FaissStore
from clipretrieval.stores.local.store import LocalStore
from clipretrieval.stores.memory import MemoryStore
from clipretrieval.types import AnyArray, FloatArray, Metric, Neighbors

__all__ = [
    *("NEAREST", "SAMPLE", "CandidateRecords", "candidate_count", "exact_copy", "least_effort"),
    *("nearest_of", "nearest_of_blocks", "together"),
]

SAMPLE, NEAREST, WANTED_RECALL = 100, 10, 0.99
"""Stored vectors whose neighbors measure an index, how many neighbors, and the share of them to be found."""


@dataclass(frozen=True, eq=False)
class CandidateRecords:
    """Some records as a database returned them.

    Attributes
    ----------
    ids : ndarray of object (str), shape (n,)
    vectors : ndarray of float32, shape (n, dim)
    labels : ndarray of int64 or of object (str), shape (n,)
    """

    ids: AnyArray
    vectors: FloatArray
    labels: AnyArray

    def __len__(self) -> int:
        return len(self.ids)


def candidate_count(k: int) -> int:
    """Return how many records to ask for where the `k` nearest by exact distances are wanted."""
    return k + k // 4 + 32


def nearest_of(found: CandidateRecords, query: FloatArray, k: int, metric: Metric) -> Neighbors:
    """Return the `k` nearest candidates of one query, padded.

    Parameters
    ----------
    found : CandidateRecords
    query : ndarray of float32, shape (1, dim)
    k : int
    metric : Metric
    """
    if not len(found):
        return MemoryStore(metric).search(query, k)
    places, distances = nearest_rows(query, found.vectors, found.ids, k, metric)
    ids, labels = found.ids[places], found.labels[places]
    ids[places < 0], labels[places < 0] = "", "" if labels.dtype == object else -1
    return Neighbors(ids, distances, labels)


def exact_copy(metric: Metric) -> LocalStore:
    """Return an empty store in memory whose distances are those of `nearest_of`, bit for bit.

    FAISS is the faster one; under the cosine metric it compares vectors that it has rounded to unit length.
    """
    return MemoryStore(metric) if metric is Metric.COSINE else FaissStore(metric=metric, index="Flat")


def nearest_of_blocks(
    blocks: Iterable[CandidateRecords], queries: FloatArray, k: int, metric: Metric
) -> Neighbors:
    """Return the `k` nearest of all records, of which one block at a time is in memory."""
    near = MemoryStore(metric).search(queries, k)
    for block in blocks:
        copy = exact_copy(metric)
        copy.upsert(block.ids.tolist(), block.vectors, block.labels.tolist())
        near = _nearer(near, copy.search(queries, min(k, len(block))), k)
    return near


def _nearer(near: Neighbors, more: Neighbors, k: int) -> Neighbors:
    distances, ids = np.hstack([near.distances, more.distances]), np.hstack([near.ids, more.ids])
    labels = np.hstack([near.labels.astype(object), more.labels])
    order = np.array([np.lexsort(row)[:k] for row in zip(ids, distances, strict=True)])
    ids, distances, labels = (np.take_along_axis(each, order, axis=1) for each in (ids, distances, labels))
    labels[~np.isfinite(distances)] = "" if more.labels.dtype == object else -1
    return Neighbors(ids, distances, labels.astype(more.labels.dtype))


def together(answers: Sequence[Neighbors]) -> Neighbors:
    """Return the answers to one query each as one answer; padding takes the labels' type."""
    kind = next((each.labels.dtype for each in answers if each.valid.any()), answers[0].labels.dtype)
    padding = np.full(answers[0].labels.shape, "" if kind.hasobject else -1, dtype=kind)
    return Neighbors(
        np.vstack([each.ids for each in answers]),
        np.vstack([each.distances for each in answers]),
        np.vstack([each.labels if each.valid.any() else padding for each in answers]),
    )


def least_effort(
    efforts: Sequence[int], ids: AnyArray, true: Neighbors, ask: Callable[[int], Neighbors]
) -> tuple[int, float]:
    """Return the least effort of an index that finds enough, or the greatest, and its recall.

    Parameters
    ----------
    efforts : sequence of int
        Ascending.
    ids : ndarray of object (str), shape (n,)
        Of the stored vectors that are asked about; a vector does not count as its own neighbor.
    true : Neighbors
        Of these vectors, `NEAREST` + 1 for each.
    ask : callable
        Returns the neighbors that are found with an effort.
    """
    effort, recall = efforts[0], 1.0
    for effort in efforts:
        rows = zip(ids.tolist(), true.ids.tolist(), ask(effort).ids.tolist(), strict=True)
        wanted = [({*right} - {own, ""}, {*found}) for own, right, found in rows]
        shares = [len(right & found) / len(right) for right, found in wanted if right]
        recall = float(np.mean(shares)) if shares else 1.0
        if recall >= WANTED_RECALL:
            break
    return effort, recall
