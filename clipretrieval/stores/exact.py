"""Exact nearest neighbors: what MemoryStore answers, and what every other exact store must answer too.

A search has two steps. A fast one finds candidates by approximate distances whose error is bounded; the bound
decides which rows can be among the nearest, ties included. The second computes the candidates' distances by
direct differences in float64, one row at a time, so a distance depends on nothing but its two vectors: equal
vectors are at distance 0, and a query alone gets bit for bit what it gets in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from clipretrieval.types import FloatArray, Metric

__all__ = [
    "DoubleArray",
    "IndexArray",
    "Rows",
    "Shortlist",
    "nearest_rows",
    "pair_distances",
    "row_norms",
    "unit_rows",
]

DoubleArray: TypeAlias = npt.NDArray[np.float64]
IndexArray: TypeAlias = npt.NDArray[np.int64]

Shortlist: TypeAlias = Callable[[FloatArray, int], tuple[DoubleArray, IndexArray, DoubleArray]]
"""Maps (queries, m) to the m approximately nearest rows of each: their approximate distances, ascending,
shape (n_queries, m); their positions, same shape; and a bound on the distances' error, shape (n_queries,)."""


class Rows(Protocol):
    """What may be given for an array of float32, shape (n, dim): vectors that lie in several places."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any:
        """Return the rows of a slice, or of an array of places."""
        ...


class Ids(Protocol):
    """What may be given for an array of ids: something that finds them only when they are asked for."""

    def __getitem__(self, places: Any, /) -> Any: ...


# Sizes of temporary arrays, in elements: gathered pairs stay in the processor's cache, a scan's
# distances within 32 MB.
PAIR_ELEMENTS = 1 << 16
BLOCK_ELEMENTS = 1 << 20
SCAN_ELEMENTS = 1 << 22

FLOAT32_MAX = float(np.finfo(np.float32).max)
# Two rows of one direction differ by the rounding of their normalisation: about 1e-32 in ½‖q̂ − x̂‖².
SAME_DIRECTION = 1e-30


def nearest_rows(
    queries: FloatArray,
    rows: Rows,
    ids: Ids,
    k: int,
    metric: Metric,
    shortlist: Shortlist | None = None,
    candidates: IndexArray | None = None,
) -> tuple[IndexArray, FloatArray]:
    """Find the `k` nearest rows of each query, ordered by (float32 distance, id).

    Parameters
    ----------
    queries : ndarray of float32, shape (n_queries, dim)
    rows : ndarray of float32, shape (n, dim), or `Rows`
    ids : ndarray of object (str), shape (n,), or `Ids`
    k : int
    metric : Metric
    shortlist : callable, optional
        A fast source of candidates; queries for which its error bound leaves a doubt, or all if there is
        none, are answered by a scan in float64.
    candidates : ndarray of int64, shape (n_queries, m), optional
        Rows that are probably near each query, none twice; -1 where there is none. Where they are at least
        ``min(k, n)``, the nearest of them are the answer, and the search is approximate.

    Returns
    -------
    positions : ndarray of int64, shape (n_queries, k)
        Padded with -1 where there are fewer than `k` rows.
    distances : ndarray of float32, shape (n_queries, k)
        Padded with +inf.
    """
    positions = np.full((len(queries), k), -1, dtype=np.int64)
    distances = np.full((len(queries), k), np.inf, dtype=np.float32)
    reach = min(k, len(rows))
    if not reach:
        return positions, distances
    doubtful = np.arange(len(queries))
    search = _NearestRows(rows, ids, reach, metric, positions, distances)
    if candidates is not None:
        doubtful = search.by_candidates(queries, candidates)
    if shortlist is not None:
        doubtful = search.by_shortlist(queries, doubtful, shortlist)
    search.by_scan(queries, doubtful)
    return positions, distances


class _NearestRows:
    """One call of `nearest_rows`: what the steps share, and the arrays they fill."""

    def __init__(
        self,
        rows: Rows,
        ids: Ids,
        reach: int,
        metric: Metric,
        positions: IndexArray,
        distances: FloatArray,
    ) -> None:
        self.rows, self.ids, self.reach, self.metric = rows, ids, reach, metric
        self.positions, self.distances = positions, distances

    def by_candidates(self, queries: FloatArray, found: IndexArray) -> IndexArray:
        """Answer the queries that have enough candidates by the nearest of them; return the other places."""
        real = found >= 0
        enough = np.count_nonzero(real, axis=1) >= self.reach
        step = max(1, SCAN_ELEMENTS // max(1, found.shape[1]))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            which, column = np.nonzero(real[part] & enough[part, None])
            self._fill(queries, which + start, found[part][which, column])
        return np.flatnonzero(~enough)

    def by_shortlist(self, queries: FloatArray, places: IndexArray, shortlist: Shortlist) -> IndexArray:
        """Answer the queries at `places` whose shortlist is surely complete; return the other places."""
        count, reach = len(self.rows), self.reach
        length = min(count, reach + reach // 4 + 32)
        step = min(4096, max(1, SCAN_ELEMENTS // length))
        doubtful = [np.empty(0, dtype=np.int64)]
        for start in range(0, len(places), step):
            part = places[start : start + step]
            approximate, found, error = shortlist(queries[part], length)
            limit = _limit(approximate[:, reach - 1], error)
            sure = np.logical_and.reduce(np.isfinite(approximate) & (found >= 0), axis=1)
            if length < count:
                sure &= approximate[:, -1] > limit
            which, column = np.nonzero((approximate <= limit[:, None]) & sure[:, None])
            self._fill(queries, part[which], found[which, column])
            doubtful.append(part[~sure])
        return np.concatenate(doubtful)

    def by_scan(self, queries: FloatArray, places: IndexArray) -> None:
        """Answer the queries at `places` by comparing each with all rows."""
        step = max(1, SCAN_ELEMENTS // len(self.rows))
        for start in range(0, len(places), step):
            part = places[start : start + step]
            approximate, error = _scan(queries[part], self.rows, self.metric)
            kth = np.partition(approximate, self.reach - 1, axis=1)[:, self.reach - 1]
            which, found = np.nonzero(approximate <= _limit(kth, error)[:, None])
            self._fill(queries, part[which], found)

    def _fill(self, queries: FloatArray, which: IndexArray, found: IndexArray) -> None:
        """Write the nearest of the candidate pairs (query `which`, row `found`), given query by query."""
        exact = _narrow(_pair_distances(queries, self.rows, which, found, self.metric))
        order = _order(which, exact, found, self.ids)
        which, found, exact = which[order], found[order], exact[order]
        starts = np.flatnonzero(np.diff(which, prepend=-1))
        lengths = np.diff(starts, append=len(which))
        column = np.arange(len(which)) - np.repeat(starts, lengths)
        kept = column < self.reach
        self.positions[which[kept], column[kept]] = found[kept]
        self.distances[which[kept], column[kept]] = exact[kept]


def pair_distances(queries: FloatArray, rows: Rows, found: IndexArray, metric: Metric) -> FloatArray:
    """Return the distance of each query to each of its candidates as a search returns it.

    Parameters
    ----------
    queries : ndarray of float32, shape (n_queries, dim)
    rows : ndarray of float32, shape (n, dim)
    found : ndarray of int64, shape (n_queries, m)
        -1 where there is none: there the distance is +inf.
    metric : Metric

    Returns
    -------
    ndarray of float32, shape (n_queries, m)
    """
    distances = np.full(found.shape, np.inf, dtype=np.float32)
    which, column = np.nonzero(found >= 0)
    distances[which, column] = _narrow(_pair_distances(queries, rows, which, found[which, column], metric))
    return distances


def row_norms(rows: Rows) -> DoubleArray:
    """Return the Euclidean norm of each row, computed in float64."""
    norms = np.empty(len(rows))
    step = max(1, PAIR_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float64)
        norms[start : start + step] = np.einsum("ij,ij->i", block, block)
    return np.sqrt(norms, out=norms)


def unit_rows(rows: FloatArray, norms: DoubleArray) -> FloatArray:
    """Return the rows divided by their norms, rounded to float32."""
    unit = np.empty_like(rows)
    step = max(1, PAIR_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        np.divide(rows[part], norms[part, None], out=unit[part], casting="same_kind")
    return unit


def _limit(kth: DoubleArray, error: DoubleArray) -> DoubleArray:
    """Bound the approximate distance of every row that can be among the nearest, ties included.

    `kth` is the k-th smallest approximate distance. The k-th smallest exact one is at most ``kth + error``; a
    row ties with it if both round to the same float32, hence the next float32 up; and the row's own
    approximation may exceed its distance by `error` once more.
    """
    with np.errstate(over="ignore"):
        rounded = np.maximum((kth + error).astype(np.float32), np.float32(-FLOAT32_MAX))
        above = np.nextafter(rounded, np.float32(np.inf)).astype(np.float64)
    return above + error


def _scan(queries: FloatArray, rows: Rows, metric: Metric) -> tuple[DoubleArray, DoubleArray]:
    """Compare queries with all rows by matrix products in float64.

    Returns
    -------
    approximate : ndarray of float64, shape (n_queries, n)
    error : ndarray of float64, shape (n_queries,)
        Bound on their error, that of `_pair_distances` included.
    """
    dim = rows.shape[1]
    exact = queries.astype(np.float64)
    query_norms = row_norms(queries)
    approximate = np.empty((len(queries), len(rows)))
    longest = 0.0
    step = max(1, BLOCK_ELEMENTS // dim)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float64)
        out = np.matmul(exact, block.T, out=approximate[:, start : start + step])
        norms = np.sqrt(np.einsum("ij,ij->i", block, block))
        longest = max(longest, float(norms.max()))
        if metric is Metric.L2:
            out *= -2.0
            out += np.square(query_norms)[:, None]
            out += np.square(norms)
        elif metric is Metric.COSINE:
            out /= -query_norms[:, None]
            out /= norms
            out += 1.0
        else:
            np.negative(out, out=out)
    relative = 4 * (dim + 8) * np.finfo(np.float64).eps
    if metric is Metric.L2:
        return approximate, relative * np.square(query_norms + longest)
    if metric is Metric.COSINE:
        return approximate, np.full(len(queries), relative)
    return approximate, relative * query_norms * longest


def _pair_distances(
    queries: FloatArray, rows: Rows, which: IndexArray, found: IndexArray, metric: Metric
) -> DoubleArray:
    """Return the distances of the pairs (``queries[which[i]]``, ``rows[found[i]]``), shape (n_pairs,)."""
    distances = np.empty(len(which))
    step = max(1, PAIR_ELEMENTS // rows.shape[1])
    for start in range(0, len(which), step):
        part = slice(start, start + step)
        left = queries[which[part]].astype(np.float64)
        right = rows[found[part]].astype(np.float64)
        if metric is Metric.COSINE:
            # 1 − cos = ½‖q̂ − x̂‖²: exact where the angle is small, and 0 where there is none.
            left /= np.sqrt(np.einsum("ij,ij->i", left, left))[:, None]
            right /= np.sqrt(np.einsum("ij,ij->i", right, right))[:, None]
        if metric is Metric.IP:
            np.einsum("ij,ij->i", left, right, out=distances[part])
        else:
            left -= right
            np.einsum("ij,ij->i", left, left, out=distances[part])
    if metric is Metric.IP:
        np.negative(distances, out=distances)
    elif metric is Metric.COSINE:
        distances *= 0.5
        distances[distances < SAME_DIRECTION] = 0.0
        np.minimum(distances, 2.0, out=distances)
    return distances


def _narrow(distances: DoubleArray) -> FloatArray:
    """Round to float32; values beyond its range become its largest, as +inf stands for padding."""
    # Adding zero turns -0.0 into 0.0.
    return np.clip(distances, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32) + np.float32(0)


def _order(which: IndexArray, distances: FloatArray, found: IndexArray, ids: Ids) -> IndexArray:
    """Return the order of the pairs by (query, distance, id); ids are compared only where distances tie."""
    order = np.lexsort((distances, which))
    sorted_which, sorted_distances = which[order], distances[order]
    tied = (sorted_which[1:] == sorted_which[:-1]) & (sorted_distances[1:] == sorted_distances[:-1])
    if not tied.any():
        return order
    in_tie = np.zeros(len(order), dtype=bool)
    in_tie[1:] |= tied
    in_tie[:-1] |= tied
    pairs = order[in_tie]
    rows, inverse = np.unique(found[pairs], return_inverse=True)
    by_id = np.empty(len(rows), dtype=np.int64)
    by_id[np.argsort(ids[rows], kind="stable")] = np.arange(len(rows))
    rank = np.zeros(len(order), dtype=np.int64)
    rank[pairs] = by_id[inverse]
    return np.lexsort((rank, distances, which))
