"""Rows that FAISS searches exactly, by matrix products in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager

import faiss
import numpy as np

from clipretrieval._util.forks import no_inherited_threads
from clipretrieval.stores.exact import DoubleArray, IndexArray, Shortlist, row_norms
from clipretrieval.stores.local.held import HeldRecords, JoinedRows
from clipretrieval.stores.local.rows import ArrayRows
from clipretrieval.stores.local.segments import BitArray
from clipretrieval.types import FloatArray, Metric

__all__ = ["FlatRows", "HeldRows", "faiss_alone", "shortlist_of"]

UNIT_ROUNDOFF = 2.0**-24
# Matrix products go through long vectors in pieces of at most about this many terms, each summed on its own.
LONGEST_SUM = 512
# How many times quicker a matrix product is than FAISS's loop over pairs; measured from 256 dimensions up.
PRODUCT_GAIN = 6


def faiss_alone() -> AbstractContextManager[None]:
    """Have FAISS compute without threads that stayed behind at a fork."""
    return no_inherited_threads(faiss.omp_get_max_threads, faiss.omp_set_num_threads)


class FlatRows(ArrayRows):
    """Rows in an array, which FAISS searches.

    Parameters
    ----------
    dim : int
    metric : Metric
        Under the cosine metric the rows must be of norm 1.
    """

    def __init__(self, dim: int, metric: Metric) -> None:
        super().__init__(dim)
        self._metric = metric

    def longest(self) -> float:
        """Return the greatest norm of a row."""
        return float(row_norms(self.view()).max(initial=0.0))

    def shortlist(self, longest: float) -> Shortlist:
        return shortlist_of(self.view(), self._metric, longest)


class HeldRows:
    """All rows of a store with a folder, as `FlatRows` that are only read.

    Parameters
    ----------
    held : HeldRecords
    metric : Metric
    """

    def __init__(self, held: HeldRecords, metric: Metric) -> None:
        self._held, self._metric, self._view = held, metric, held.view()

    @property
    def dim(self) -> int:
        return int(self._view.shape[1])

    def view(self) -> FloatArray | JoinedRows:
        return self._view

    def longest(self) -> float:
        """Return a bound on the norms of the rows."""
        return 1.0 if self._metric is Metric.COSINE else self._held.longest

    def shortlist(self, longest: float) -> Shortlist:
        return shortlist_of(self._view, self._metric, longest)


def shortlist_of(rows: FloatArray | JoinedRows, metric: Metric, longest: float) -> Shortlist:
    """Return FAISS's own search, with a bound on its error.

    FAISS takes ``‖q‖² + ‖x‖² − 2 q·x`` in float32, whose rounding grows with the norms and not with the
    distance: vectors far from the origin and close to each other may come in any order.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, dim), or JoinedRows
    metric : Metric
    longest : float
        A bound on the norms of the rows.
    """
    dim = rows.shape[1]
    relative = (min(dim, LONGEST_SUM) + 16) * UNIT_ROUNDOFF
    # What may be lost where products are too small for float32.
    smallest = 4 * dim * float(np.finfo(np.float32).tiny)

    def search(queries: FloatArray, length: int) -> tuple[DoubleArray, IndexArray, DoubleArray]:
        distances, found = _nearest(queries, rows, length, metric)
        norms = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
        if metric is Metric.L2:
            return distances, found, relative * np.square(norms + longest) + smallest
        if metric is Metric.IP:
            return distances, found, relative * norms * longest + smallest
        return distances + 1.0, found, np.full(len(queries), relative + smallest)

    return search


def _nearest(
    queries: FloatArray, rows: FloatArray | JoinedRows, length: int, metric: Metric
) -> tuple[DoubleArray, IndexArray]:
    """Return the approximately nearest rows and their squared distances or negated products, ascending."""
    best: DoubleArray = np.empty((len(queries), 0))
    found: IndexArray = np.empty((len(queries), 0), dtype=np.int64)
    start = 0
    for block, left in [(rows, None)] if isinstance(rows, np.ndarray) else rows.blocks():
        values, places = _nearest_left(block, left, queries, length, metric)
        near = values.astype(np.float64) if metric is Metric.L2 else -values.astype(np.float64)
        places = np.where(places < 0, -1, places + start)
        start += len(block) if left is None else int(np.count_nonzero(left))
        if not found.shape[1]:
            best, found = near, places
            continue
        best, found = np.concatenate([best, near], axis=1), np.concatenate([found, places], axis=1)
        order = np.argsort(best, axis=1, kind="stable")[:, :length]
        best, found = np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)
    return best, found


def _nearest_left(
    block: FloatArray, left: BitArray | None, queries: FloatArray, length: int, metric: Metric
) -> tuple[FloatArray, IndexArray]:
    """Search among the rows of an array that are left, which are counted through."""
    if left is None:
        return _search_by_products(block, queries, min(length, len(block)), metric)
    count, gone = int(np.count_nonzero(left)), int(np.count_nonzero(~left))
    reach = min(length, count)
    # Seldom are more among the nearest than among all; a search for some more spares the copy of the others.
    wide = reach + 8 + 2 * reach * gone // len(block)
    if wide < min(count, 4 * reach + 64):
        values, places = _search_by_products(block, queries, wide, metric)
        there = (places >= 0) & left[places]
        if (np.count_nonzero(there, axis=1) >= reach).all():
            order = np.argsort(~there, axis=1, kind="stable")[:, :reach]
            places = np.take_along_axis(places, order, axis=1)
            return np.take_along_axis(values, order, axis=1), (np.cumsum(left) - 1)[places]
    return _search_by_products(block[left], queries, reach, metric)


def _search_by_products(
    rows: FloatArray, queries: FloatArray, length: int, metric: Metric
) -> tuple[FloatArray, IndexArray]:
    """Search, with repeated queries added where so few make FAISS forgo a matrix product.

    FAISS compares pair by pair below ``distance_compute_blas_threshold``. Since 1.15 that counts queries
    times dimensions: a hundred queries of 1,024 take four times as long as a hundred and thirty. Before, it
    counted queries and was 20, so that nothing is added there.
    """
    enough = -(-int(faiss.cvar.distance_compute_blas_threshold) // rows.shape[1])
    count = len(queries)
    if enough / PRODUCT_GAIN < count < enough:
        queries = np.concatenate([queries, np.repeat(queries[-1:], enough - count, axis=0)])
    kind = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    values, found = faiss.knn(queries, rows, length, metric=kind)
    return values[:count], found[:count]
