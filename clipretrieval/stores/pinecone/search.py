"""Searches in a namespace: ties where a row ends, and answers that would be too large."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipretrieval.stores.pinecone.namespace import Namespace
from clipretrieval.stores.pinecone.records import (
    is_zero,
    json_numbers,
    label_of,
    name_of,
    packed_labels,
    packed_names,
)
from clipretrieval.stores.pinecone.requests import Failure
from clipretrieval.types import FloatArray, Metric, Neighbors

__all__ = ["MAX_TOP_K", "NeighborSearch", "as_neighbors"]

MAX_TOP_K = 10_000
# How many more neighbors are looked at to tell which of those at the last one's distance come first by id.
TIES = 1_000
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


Ranked = list[tuple[float, Match]]
"""Matches of a query with their distances, the nearest first."""


class NeighborSearch:
    """Finds the `k` nearest of each query, and all that are as far as the last of them.

    Parameters
    ----------
    namespace : Namespace
    queries : ndarray of float32, shape (n_queries, dim)
    k : int
        At most `MAX_TOP_K`.
    metric : Metric
    """

    def __init__(self, namespace: Namespace, queries: FloatArray, k: int, metric: Metric) -> None:
        self._namespace, self._queries, self._k, self._metric = namespace, queries, k, metric
        self._found: list[Ranked] = [[] for _ in queries]
        # From how many matches on their metadata make an answer too large, and the queries asked without.
        self._bare_from = math.inf
        self._bare: set[int] = set()

    def run(self) -> list[Ranked]:
        """Return what is found for each query; more are asked for until equal distances end."""
        widest = min(self._k + TIES, MAX_TOP_K)
        waiting = [(place, min(self._k + 1, widest)) for place in range(len(self._queries))]
        while waiting:
            waiting = [
                (place, reach if near is None else min(2 * reach + 14, widest))
                for place, reach, near in self._round(waiting)
                if near is None or (len(near) == reach < widest and near[self._k - 1][0] == near[-1][0])
            ]
        self._complete()
        return self._found

    def _round(self, asked: list[tuple[int, int]]) -> Iterator[tuple[int, int, Ranked | None]]:
        """Ask for so many matches of the queries at these places; None: an answer too large."""
        outcomes = self._namespace.query(self._requests(asked))
        for (place, reach), outcome in zip(asked, outcomes, strict=True):
            if not isinstance(outcome, Failure):
                matches = (Match(each.id, each.score, each.metadata) for each in outcome.matches)
                self._found[place] = self._ranked(place, matches)
                yield place, reach, self._found[place]
            elif outcome.refused and place not in self._bare:
                # How the service words it is not documented: any refusal is tried without metadata.
                self._bare_from = min(self._bare_from, reach)
                yield place, reach, None
            else:
                raise outcome.error

    def _requests(self, asked: list[tuple[int, int]]) -> Iterator[tuple[list[float], int, bool]]:
        for place, reach in asked:
            bare = reach >= self._bare_from
            if bare:
                self._bare.add(place)
            yield json_numbers(self._queries[place]), reach, not bare

    def _complete(self) -> None:
        """Read the metadata of matches that came without, as far as they may be among the nearest."""
        kept: dict[int, list[Match]] = {}
        for place in self._bare:
            near = self._found[place]
            kept[place] = [match for far, match in near if far <= near[min(self._k, len(near)) - 1][0]]
        keys = {match.id: None for matches in kept.values() for match in matches}
        fields = self._namespace.metadata(list(keys)) if keys else {}
        for place, matches in kept.items():
            # A record that was deleted meanwhile is left out.
            whole = (Match(each.id, each.score, fields[each.id]) for each in matches if each.id in fields)
            self._found[place] = self._ranked(place, whole)

    def _ranked(self, place: int, matches: Iterable[Match]) -> Ranked:
        query = json_numbers(self._queries[place])
        return sorted(
            ((_distance(each, query, self._metric), each) for each in matches), key=lambda pair: pair[0]
        )


def as_neighbors(answers: Sequence[Ranked], k: int) -> Neighbors:
    """Order each query's matches by (distance, id), cut them at `k`, and pad.

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
    labels = packed_labels([label_of(match.id, match.metadata) for row in rows for _, _, match in row])
    shape = (len(rows), k)
    valid = np.arange(k) < np.array([len(row) for row in rows])[:, None]
    near = Neighbors(
        np.full(shape, "", dtype=object),
        np.full(shape, np.inf, dtype=np.float32),
        np.full(shape, "" if labels.dtype == object else -1, dtype=labels.dtype),
    )
    near.ids[valid] = packed_names([name for row in rows for _, name, _ in row])
    near.distances[valid] = [distance for row in rows for distance, _, _ in row]
    near.labels[valid] = labels
    return near


def _distance(match: Match, query: Sequence[float], metric: Metric) -> float:
    """Return the distance of a match of a query, as float32 holds it."""
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
