"""How similar an image is to the stored ones, regardless of class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.covariance import EPSILON, oas_shrinkage, shrink_covariance
from clipretrieval.heads.discriminant import pooled_covariance
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.heads.statistics import ClassStatistics, Moments
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.stores.exact import row_norms
from clipretrieval.types import FloatArray, Metric, Neighbors

__all__ = ["Likeness", "MahalanobisLikeness", "NeighborLikeness"]

Floats = npt.NDArray[np.float64]

NEIGHBORS = 10
"""Whose distance is used: 5, 10 and 20 made no difference on CIFAR-10, the nearest was worse."""
POWER = 0.75
"""Exponent of the squared Mahalanobis distance to the center, which that to a class is divided by."""
TINY = float(np.finfo(np.float32).tiny)


class Likeness(Protocol):
    """A score of queries: higher is more similar to what is stored."""

    @property
    def k(self) -> int:
        """Neighbors that it reads of each query; 0 where it reads none."""
        ...

    def score(self, vectors: FloatArray, near: Neighbors) -> Floats:
        """Return the scores of queries, shape (n,), whose neighbors may be more than `k`."""
        ...


@dataclass(frozen=True, eq=False)
class NeighborLikeness:
    """Minus the distance to the k-th nearest neighbor [1]_, relative to the length of the vector.

    Attributes
    ----------
    k : int
        Which one.
    relative : bool
        Whether the distance is divided by the vector's length: an encoder's vectors are longer, and farther
        apart, for images with more content. The origin of a user's own vectors may be arbitrary.

    References
    ----------
    .. [1] S. Ramaswamy, R. Rastogi, K. Shim, "Efficient algorithms for mining outliers from large data sets",
       SIGMOD (2000); Y. Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML (2022).
    """

    k: int
    relative: bool

    @classmethod
    def of(cls, index: LabelledIndex) -> NeighborLikeness:
        """Return that of an index's records."""
        relative = index.encoder is not None and index.metric != Metric.COSINE and index.transform is None
        return cls(min(NEIGHBORS, index.store.count()), relative)

    def score(self, vectors: FloatArray, near: Neighbors) -> Floats:
        """Return the scores of queries, shape (n,)."""
        rows, place = np.arange(len(near)), np.minimum(self.k, near.valid.sum(axis=1)) - 1
        found: Floats = -near.distances[rows, place].astype(np.float64)
        if self.relative:
            found /= np.maximum(row_norms(vectors).astype(np.float64), TINY)
        return found


class MahalanobisLikeness:
    """Minus the Mahalanobis distance to the nearest class [1]_, relative to that to the classes' center.

    It needs no neighbors, and is invariant under linear maps of the vectors.

    Parameters
    ----------
    statistics : ClassStatistics

    References
    ----------
    .. [1] K. Lee et al., "A simple unified framework for detecting out-of-distribution samples and
       adversarial attacks", NeurIPS (2018). Why it is relative: J. Ren et al.,
       "A simple fix to Mahalanobis distance for improving near-OOD detection" (2021), arXiv 2106.09022.
    """

    k = 0
    """No neighbors are read."""

    def __init__(self, statistics: ClassStatistics) -> None:
        covariance, freedom = pooled_covariance(statistics)
        shrunk = shrink_covariance(covariance, oas_shrinkage(covariance, freedom))
        means = statistics.means
        self._center = means.mean(axis=0)
        self._whiten = _inverse_root(shrunk)
        self._means = (means - self._center) @ self._whiten

    @classmethod
    def of(cls, index: LabelledIndex, statistics: IndexStatistics) -> MahalanobisLikeness:
        """Return that of an index's records."""
        return cls(statistics.statistics(index, Moments()))

    def score(self, vectors: FloatArray, near: Neighbors) -> Floats:
        """Return the scores of queries, shape (n,); their neighbors are not read."""
        x = (vectors.astype(np.float64) - self._center) @ self._whiten
        own = np.einsum("ij,ij->i", x, x)
        squares = own[:, None] - 2 * x @ self._means.T + np.einsum("ij,ij->i", self._means, self._means)
        found: Floats = -np.maximum(squares.min(axis=1), 0) / np.maximum(own, TINY) ** POWER
        return found


def _inverse_root(covariance: Floats) -> Floats:
    """Return a matrix R for which R Rᵀ is the inverse of a covariance, shape (dim, rank)."""
    from scipy.linalg import cholesky, solve_triangular

    try:
        factor = cholesky(covariance, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        factor = np.zeros((1, 1))
    if np.diag(factor).min() ** 2 > EPSILON * float(np.trace(covariance)) / len(covariance):
        found: Floats = solve_triangular(factor, np.eye(len(factor)), lower=True, check_finite=False).T
        return found
    values, axes = np.linalg.eigh(covariance)
    kept = values > EPSILON * len(covariance) * values[-1]
    return np.asarray(axes[:, kept] / np.sqrt(values[kept]))
