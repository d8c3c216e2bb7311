"""Votes counted for the neighbors' own classes alone: n × k numbers, however many classes there are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clipretrieval.types import FloatArray

__all__ = ["Candidates", "Votes"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The classes among the neighbors of each query: one *cell* for each pair of a query and a class.

    Attributes
    ----------
    cells : ndarray of int64, shape (n, k)
        Each neighbor's cell. Padding has that of the first neighbor, to which it adds nothing.
    rows, codes : ndarray of int64, shape (n_cells,)
        Each cell's query, ascending, and its class by number, ascending within a query.
    starts : ndarray of int64, shape (n,)
        Each query's first cell.
    """

    cells: Ints
    rows: Ints
    codes: Ints
    starts: Ints

    @classmethod
    def of(cls, codes: Ints, distances: FloatArray, n_classes: int) -> Candidates:
        """List the classes of some neighbors.

        Parameters
        ----------
        codes : ndarray of int64, shape (n, k)
            Each neighbor's class by number; any value where padded.
        distances : ndarray of float32, shape (n, k)
            ``+inf`` where padded; the first column is not.
        n_classes : int
        """
        known = np.where(np.isfinite(distances), codes, codes[:, :1])
        pairs = np.arange(len(codes))[:, None] * n_classes + known
        found, cells = np.unique(pairs, return_inverse=True)
        rows = found // n_classes
        return cls(
            cells=cells.reshape(codes.shape),
            rows=rows,
            codes=found - rows * n_classes,
            starts=np.searchsorted(rows, np.arange(len(codes))),
        )

    def votes(self, weights: Floats, distances: FloatArray) -> Votes:
        """Count the votes of the first k' neighbors: arrays of shape (n, k'), k' ≤ k."""
        return Votes(self, weights, distances)


@dataclass(frozen=True, eq=False)
class Votes:
    """The votes of each query's classes, without a column for every class.

    The class with the highest score answers. A tie goes to the tied class with the nearest neighbor; where
    those are equally near, to the first in ``classes_``.

    Attributes
    ----------
    candidates : Candidates
    weights : ndarray of float64, shape (n, k)
    distances : ndarray of float32, shape (n, k)
    """

    candidates: Candidates
    weights: Floats
    distances: FloatArray

    @cached_property
    def scores(self) -> Floats:
        """Each cell's sum of weights, shape (n_cells,)."""
        cells = self.candidates.cells[:, : self.weights.shape[1]]
        found: Floats = np.bincount(
            cells.ravel(), weights=self.weights.ravel(), minlength=len(self.candidates.rows)
        ).astype(np.float64)
        return found

    @cached_property
    def totals(self) -> Floats:
        """Each query's sum of weights, shape (n,)."""
        found: Floats = np.add.reduceat(self.scores, self.candidates.starts)
        return found

    @cached_property
    def answers(self) -> Ints:
        """The class of each query by number, shape (n,)."""
        return self.candidates.codes[self._chosen]

    @property
    def cells(self) -> tuple[Ints, Ints, Floats]:
        """The query, the class by number, and the share of each cell, each of shape (n_cells,)."""
        return self.candidates.rows, self.candidates.codes, self.shares

    @property
    def shares(self) -> Floats:
        """Each cell's share of its query's votes, shape (n_cells,)."""
        return self.scores / self.totals[self.candidates.rows]

    @cached_property
    def share_and_margin(self) -> tuple[Floats, Floats]:
        """What the function of this name computes of all classes' scores, each of shape (n,)."""
        answered, others = self.scores[self._chosen], self.scores.copy()
        others[self._chosen] = 0
        second = np.maximum.reduceat(others, self.candidates.starts)
        # Subtracted before the division, so that margins of whole votes are equal where their votes are.
        margin = np.clip((answered - second) / self.totals, 0.0, 1.0)
        return np.minimum(answered / self.totals, 1.0), margin

    @cached_property
    def _chosen(self) -> Ints:
        """The cell of each query's answer, shape (n,)."""
        rows, cells = self.candidates.rows, self.candidates.cells[:, : self.weights.shape[1]]
        best = np.maximum.reduceat(self.scores, self.candidates.starts)
        # Sums of the same weights in another order differ in their last bits; that is still a tie.
        tied = np.isclose(self.scores, best[rows], rtol=1e-12, atol=0)
        standing = np.isfinite(self.distances) & tied[cells]
        nearest = self.distances[np.arange(len(cells)), standing.argmax(axis=1)]
        first = standing & (self.distances == nearest[:, None])
        chosen: Ints = np.where(first, cells, len(rows)).min(axis=1)
        return chosen
