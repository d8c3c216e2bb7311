"""Turn what Pinecone returns into neighbours and records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores.pinecone.records import is_zero, key_of, label_of, metadata_of, name_of
from clipretrieval.types import AnyArray, Label, Listing, Metric, Neighbors, Records, as_label_array

__all__ = ["Match", "as_listing", "as_neighbors", "as_records", "distance_of"]

FLOAT32_MAX = float(np.finfo(np.float32).max)


class Match(NamedTuple):
    """A record that a search found.

    Attributes
    ----------
    id : str
        Its key.
    score : float or None
        The service's.
    metadata : mapping or None
        None too where they were not asked for.
    """

    id: str
    score: float | None
    metadata: Mapping[str, Any] | None

    @classmethod
    def of(cls, match: Any) -> Match:
        """Return what is needed of a match of the SDK's."""
        return cls(match.id, match.score, match.metadata)


def distance_of(metric: Metric) -> Callable[[Match, Sequence[float]], float]:
    """Return what turns a match of a query into its distance, as float32 holds it."""

    def distance(match: Match, query: Sequence[float]) -> float:
        score = match.score
        if is_zero(match.metadata):
            score = sum(value * value for value in query) if metric is Metric.L2 else 0.0
        if score is None or not np.isfinite(score):  # the scores of very long vectors may overflow
            return FLOAT32_MAX
        if metric is Metric.L2:
            found = max(score, 0.0)
        elif metric is Metric.COSINE:
            found = min(max(1.0 - score, 0.0), 2.0)
        else:
            found = 0.0 - score
        return float(np.float32(min(max(found, -FLOAT32_MAX), FLOAT32_MAX)))

    return distance


def as_neighbors(answers: Sequence[Sequence[tuple[float, Match]]], k: int) -> Neighbors:
    """Order each query's matches by (distance, id), cut them at `k`, and pad.

    Parameters
    ----------
    answers : sequence of sequences of (distance, match)
    k : int

    Raises
    ------
    StoreCorruptedError
        If a match was not written by the store, or labels are of mixed types.
    """
    rows = [
        sorted(
            ((distance, name_of(match.id, match.metadata), match) for distance, match in answer),
            key=lambda found: found[:2],
        )[:k]
        for answer in answers
    ]
    labels = _packed([label_of(match.id, match.metadata) for row in rows for _, _, match in row])
    shape = (len(rows), k)
    valid = np.arange(k) < np.array([len(row) for row in rows])[:, None]
    near = Neighbors(
        np.full(shape, "", dtype=object),
        np.full(shape, np.inf, dtype=np.float32),
        np.full(shape, "" if labels.dtype == object else -1, dtype=labels.dtype),
    )
    near.ids[valid] = _objects([name for row in rows for _, name, _ in row])
    near.distances[valid] = [distance for row in rows for distance, _, _ in row]
    near.labels[valid] = labels
    return near


def as_records(names: Sequence[str], found: dict[str, Any], dim: int | None) -> Records:
    """Put fetched records in the order of the ids that were asked for."""
    held = [(name, key) for name in names if (key := key_of(name)) in found]
    vectors = np.empty((len(held), dim or 0), dtype=np.float32)
    for row, (_, key) in enumerate(held):
        vectors[row] = 0.0 if is_zero(found[key].metadata) else found[key].values
    labels = _packed([label_of(key, found[key].metadata) for _, key in held])
    metadata = [metadata_of(key, found[key].metadata) for _, key in held]
    return Records(_objects([name for name, _ in held]), vectors, labels, metadata)


def as_listing(found: dict[str, Any]) -> Listing:
    """Return the true ids and the labels of fetched records."""
    names = [name_of(key, record.metadata) for key, record in found.items()]
    return Listing(
        _objects(names), _packed([label_of(key, record.metadata) for key, record in found.items()])
    )


def _packed(labels: Sequence[Label]) -> AnyArray:
    try:
        return as_label_array(labels)
    except InvalidInputError as error:
        raise StoreCorruptedError(f"the labels in the Pinecone index are damaged: {error}") from error


def _objects(names: Sequence[str]) -> AnyArray:
    packed = np.empty(len(names), dtype=object)
    packed[:] = names
    return packed
