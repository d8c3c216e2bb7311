"""Rows that an approximate index leaves out, since its codes or lists do not represent them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clipretrieval.stores.exact import nearest, row_norms
from clipretrieval.stores.faiss.flat import FlatRows
from clipretrieval.stores.local.table import Moves
from clipretrieval.types import FloatArray, Metric

__all__ = ["Outliers"]

IndexArray = npt.NDArray[np.int64]


class Outliers:
    """Rows that every search compares exactly.

    Parameters
    ----------
    rows : ndarray of int64, shape (n,)
        Unique, ascending.
    """

    def __init__(self, rows: IndexArray | None = None) -> None:
        self.rows: IndexArray = np.empty(0, dtype=np.int64) if rows is None else rows
        self._copy: tuple[FlatRows, float] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def replace(self, places: IndexArray, fits: npt.NDArray[np.bool_]) -> None:
        """Follow a write into `places`, of which those are outliers that do not fit."""
        if len(self.rows):
            kept = np.setdiff1d(self.rows, places)
            if len(kept) < len(self.rows):
                self._set(kept)
        if not fits.all():
            self._set(np.union1d(self.rows, places[~fits]))

    def move(self, moves: Moves) -> None:
        """Follow rows that were moved."""
        if not len(self.rows):
            return
        stay = self.rows[(self.rows < moves.kept) & ~np.isin(self.rows, moves.targets)]
        self._set(np.union1d(stay, moves.targets[np.isin(moves.sources, self.rows)]))

    def join(
        self, found: IndexArray, queries: FloatArray, k: int, flat: FlatRows, metric: Metric
    ) -> IndexArray:
        """Return candidates and the `k` nearest outliers of each query.

        Parameters
        ----------
        found : ndarray of int64, shape (n_queries, m)
            Rows, none of them an outlier; -1 where there is none.
        queries : ndarray of float32, shape (n_queries, dim)
        k : int
        flat : FlatRows
            All rows.
        metric : Metric

        Returns
        -------
        ndarray of int64, shape (n_queries, m + min(k, n))
        """
        if not len(self.rows):
            return found
        copy = self._copy
        if copy is None:
            vectors, held = flat.view()[self.rows], FlatRows(flat.dim, metric)
            held.write(vectors, np.arange(len(vectors)))
            copy = self._copy = held, float(row_norms(vectors).max())
        held, longest = copy
        reach = min(k, len(self.rows))
        order = np.arange(len(self.rows))
        near, _ = nearest(queries, held.view(), order, reach, metric, held.shortlist(longest))
        return np.concatenate([found, self.rows[near]], axis=1)

    def _set(self, rows: IndexArray) -> None:
        self.rows, self._copy = rows, None
