"""Choosing what a search of an approximate index may spend, by the recall that it reaches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from clipretrieval.stores.exact import IndexArray, nearest_rows, pair_distances
from clipretrieval.stores.faiss.index import AnnIndex, Flat, Knobs
from clipretrieval.types import FloatArray, Metric

__all__ = ["finds_again", "tune"]

# Recall is measured at ten neighbors of this many stored vectors.
NEIGHBORS, SAMPLE = 10, 200
MOST_OVER_FETCH, LEAST_EFFORT, MOST_EFFORT = 64, 32, 2048
SEED = 0
# Of vectors that were just written, so many are looked up again; by chance, so much less is found of few.
LOOKED_UP, SLACK = 32, 0.05


def finds_again(
    index: AnnIndex,
    flat: Flat,
    metric: Metric,
    knobs: Knobs,
    places: IndexArray,
    recall: float,
) -> bool:
    """Tell whether searches find some rows among each other as well as they find others.

    Codes and graphs that serve most vectors may confuse a small group that lies closer together than the
    codes resolve, or apart from the graph. Each of a sample of the rows is looked up: those of the rows that
    are nearer than its tenth neighbor found have to be among what was found.

    Parameters
    ----------
    index : AnnIndex
    flat : Flat
        All rows.
    metric : Metric
    knobs : Knobs
        What a search spends.
    places : ndarray of int64, shape (n,)
        The rows, unique.
    recall : float
        What is reached on others, in [0, 1].
    """
    if not index.total or not len(places):
        return True
    rows = flat.view()
    sample = np.random.default_rng(SEED).choice(places, min(LOOKED_UP, len(places)), replace=False)
    queries = rows[sample]
    found = index.search(queries, NEIGHBORS, knobs.fetch(NEIGHBORS), knobs)
    found = index.outliers.join(found, queries, NEIGHBORS, flat, metric)
    distances = np.where(found < 0, np.inf, pair_distances(queries, rows, found, metric))
    reach = min(NEIGHBORS, distances.shape[1]) - 1
    limits = np.partition(distances, reach, axis=1)[:, reach, None]
    among = np.broadcast_to(places, (len(sample), len(places)))
    near = pair_distances(queries, rows, among, metric) < limits
    known = np.array([np.isin(places, each) for each in found])
    total, missed = int(near.sum()), int((near & ~known).sum())
    return missed <= (1 - recall + SLACK) * total


def tune(index: AnnIndex, flat: Flat, metric: Metric, target: float) -> tuple[Knobs, float]:
    """Find the least effort whose recall@10 is at least `target`; the best there is where none is.

    Stored vectors are the queries, each of which does not count as its own neighbor. A row counts as a true
    neighbor if it is no farther than the tenth. First the least ``nprobe`` or ``ef_search`` of a doubling
    ladder is taken with which some over-fetch suffices, then the least over-fetch.

    Returns
    -------
    knobs : Knobs
    recall : float
        In [0, 1].
    """
    rows = flat.view()
    sample = np.random.default_rng(SEED).choice(len(rows), min(SAMPLE, len(rows)), replace=False)
    queries = rows[sample]
    limits = _tenth_distances(queries, sample, flat, metric)

    def near(found: IndexArray) -> npt.NDArray[np.bool_]:
        within = pair_distances(queries, rows, found, metric) <= limits[:, None]
        true: npt.NDArray[np.bool_] = np.logical_and(within, found != sample[:, None])
        return true

    nothing = np.empty((len(queries), 0), dtype=np.int64)
    apart = near(index.outliers.join(nothing, queries, NEIGHBORS + 1, flat, metric)).sum(axis=1)
    best: tuple[Knobs, float] | None = None
    for effort in _ladder(index):
        depth, found = _candidates(index, queries, effort)
        right = near(found)
        for over_fetch in _over_fetches(index):
            knobs = Knobs(effort.nprobe, effort.ef_search, over_fetch)
            reach = knobs.fetch(NEIGHBORS) + 1  # the query itself is among the candidates
            if over_fetch > 1 and reach > depth:
                break
            hits = apart + right[:, :reach].sum(axis=1)
            recall = float(np.minimum(hits, NEIGHBORS).mean() / min(NEIGHBORS, len(rows) - 1))
            if best is None or recall > best[1]:
                best = knobs, recall
            if recall >= target:
                return knobs, recall
    if best is None:
        raise ValueError("the ladder of efforts is empty")
    return best


def _tenth_distances(queries: FloatArray, sample: IndexArray, flat: Flat, metric: Metric) -> FloatArray:
    """Return the distance of each query's tenth neighbor other than itself, shape (n_queries,)."""
    rows = flat.view()
    reach = min(NEIGHBORS + 1, len(rows))
    shortlist = flat.shortlist(flat.longest())
    found, distances = nearest_rows(queries, rows, np.arange(len(rows)), reach, metric, shortlist)
    itself = found == sample[:, None]
    itself[~itself.any(axis=1), -1] = True  # among more than ten at one distance
    others: FloatArray = distances[~itself].reshape(len(queries), reach - 1)
    return others[:, -1]


def _ladder(index: AnnIndex) -> Iterator[Knobs]:
    """Yield efforts, each with about double the one before."""
    if index.lists:
        nprobe = 1
        while nprobe < index.lists:
            yield Knobs(nprobe, None, 1)
            nprobe *= 2
        yield Knobs(index.lists, None, 1)
    elif index.is_graph:
        effort = LEAST_EFFORT
        while effort <= MOST_EFFORT:
            yield Knobs(None, effort, 1)
            effort *= 2
    else:
        yield Knobs(None, None, 1)


def _over_fetches(index: AnnIndex) -> list[int]:
    """Return the over-fetches to try: only codes may put a near vector behind a farther one."""
    if index.keeps_vectors:
        return [1]
    return [2**power for power in range(MOST_OVER_FETCH.bit_length())]


def _candidates(index: AnnIndex, queries: FloatArray, effort: Knobs) -> tuple[int, IndexArray]:
    """Return candidates of which any shorter search with the same effort gives the first."""
    most = _over_fetches(index)[-1]
    depth = Knobs(None, None, most).fetch(NEIGHBORS) + 1
    if effort.ef_search:  # a graph's search for more than half its effort raises the effort
        depth = min(depth, effort.ef_search // 2)
    depth = max(depth, effort.fetch(NEIGHBORS) + 1)
    return depth, index.search(queries, NEIGHBORS, depth, effort)
