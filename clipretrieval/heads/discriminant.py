"""Gaussian classes with one covariance, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.base import Contents, Queries, StoredSample
from clipretrieval.heads.covariance import (
    EPSILON,
    check_shrinkage,
    oas_shrinkage,
    shrink_covariance,
    solver,
)
from clipretrieval.heads.statistics import ClassStatistics, Moments

__all__ = ["Discriminant", "LearnedDiscriminant"]

Floats = npt.NDArray[np.float64]

TRIED = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Shrinkages that are compared by validation."""
VALIDATED_ON = 2000
"""Stored vectors that they are compared on, at most."""


@dataclass(frozen=True)
class Discriminant:
    """Linear discriminant analysis: normal classes, each with its mean, all with one covariance.

    Learning takes one Cholesky factorisation of a dim × dim matrix, and a query dim × n_classes
    multiply-adds; no neighbor is looked up.

    Parameters
    ----------
    shrinkage : {"oas", "validated"} or float in [0, 1]
        How far the covariance is drawn towards a multiple of the identity: by the formula of `oas_shrinkage`;
        by what is most probable of stored vectors that are left out one by one; or as far as given, which is
        that of ``sklearn.discriminant_analysis.LinearDiscriminantAnalysis``.

    References
    ----------
    R. A. Fisher, "The use of multiple measurements in taxonomic problems", Annals of Eugenics 7 (1936);
    T. Hastie, R. Tibshirani, J. Friedman, "The Elements of Statistical Learning" (2009), section 4.3.
    """

    shrinkage: str | float = "oas"

    def __post_init__(self) -> None:
        check_shrinkage(self.shrinkage)

    @property
    def k(self) -> int:
        """No neighbors are read."""
        return 0

    @property
    def moments(self) -> Sequence[Moments]:
        """The pooled second moment."""
        return (Moments(),)

    def learn(self, contents: Contents) -> LearnedDiscriminant:
        """Learn the classes' means and their covariance."""
        statistics = contents.statistics(Moments())
        covariance, freedom = pooled_covariance(statistics)
        if self.shrinkage != "validated":
            amount = oas_shrinkage(covariance, freedom) if self.shrinkage == "oas" else float(self.shrinkage)
            return LearnedDiscriminant(statistics, covariance, amount, contents.priors)
        sample = contents.sample(VALIDATED_ON)
        tried = [LearnedDiscriminant(statistics, covariance, amount, contents.priors) for amount in TRIED]
        return max(tried, key=lambda learned: _held_out_likelihood(learned, sample))


class LearnedDiscriminant:
    """Means and covariance of normal classes.

    Parameters
    ----------
    statistics : ClassStatistics
    covariance : ndarray of float64, shape (dim, dim)
    shrinkage : float
        In [0, 1].
    priors : ndarray of float64, shape (n_classes,)

    Attributes
    ----------
    shrinkage : float
    """

    def __init__(
        self, statistics: ClassStatistics, covariance: Floats, shrinkage: float, priors: Floats
    ) -> None:
        self.shrinkage = shrinkage
        self._counts, self._means = statistics.counts, statistics.means
        self._center = self._means.mean(axis=0)  # differences of large numbers lose digits
        noise = 4 * EPSILON * statistics.trace / statistics.count  # of the difference of two moments
        self._solve = solver(shrink_covariance(covariance, shrinkage), noise)
        self._total = statistics.count
        means = self._means - self._center
        self._weights = self._solve(means.T)
        with np.errstate(divide="ignore"):  # a class may be given no probability at all
            self._log_priors = np.log(priors)
        self._offsets = self._log_priors - np.einsum("ij,ji->i", means, self._weights) / 2

    def log_scores(self, queries: Queries) -> Floats:
        """Return log densities, less what is the same for all classes, shape (n, n_classes)."""
        found: Floats = (queries.vectors.astype(np.float64) - self._center) @ self._weights
        found += self._offsets
        return found

    def held_out_scores(self, sample: StoredSample) -> Floats:
        """Return the log scores of stored vectors as they are without each one itself, shape (n, n_classes).

        The inverse covariance changes by a rank of one [1]_; the multiple of the identity that it is drawn
        to is held. −inf for the class of a vector that is alone in it.

        References
        ----------
        .. [1] J. H. Friedman, "Regularized discriminant analysis", Journal of the American Statistical
           Association 84 (1989), pages 165-175, section 4.
        """
        x = sample.vectors.astype(np.float64) - self._center
        means, codes, rows = self._means - self._center, sample.codes, np.arange(len(sample.codes))
        counts = self._counts[codes].astype(np.float64)
        solved = self._solve(x.T).T
        # Products of the deviations from each mean with one another, under the inverse covariance.
        squares = np.einsum("ij,ij->i", x, solved)[:, None] - 2 * x @ self._weights
        squares += np.einsum("ij,ji->i", means, self._weights)
        cross = np.einsum("ij,ij->i", x - means[codes], solved)[:, None] - (x - means[codes]) @ self._weights
        own = squares[rows, codes]
        grown = counts / np.maximum(counts - 1, 1)
        weight = (1 - self.shrinkage) * grown / self._total
        left = np.maximum(1 - weight * own, 1e-12)
        distances = squares + (weight / left)[:, None] * cross**2
        distances[rows, codes] = grown**2 * own / left
        scores: Floats = self._log_priors - distances * ((self._total - 1) / self._total / 2)
        scores[rows[counts < 2], codes[counts < 2]] = -np.inf
        return scores


def pooled_covariance(statistics: ClassStatistics) -> tuple[Floats, int]:
    """Return the covariance within classes, divided by the number of vectors, and its degrees of freedom.

    Where no class has two different vectors, the classes' spheres: the identity, times the variance of all.
    """
    scatter, count = statistics.within_scatter, statistics.count
    total = statistics.trace
    if np.trace(scatter) > 1e-12 * total:
        return scatter / count, count - len(statistics.counts)
    sums = statistics.sums.sum(axis=0)
    spread = (total - sums @ sums / count) / count / statistics.dim
    return np.eye(statistics.dim) * (spread if spread > 1e-12 * total / count else 1.0), 0


def _held_out_likelihood(learned: LearnedDiscriminant, sample: StoredSample) -> float:
    from scipy.special import log_softmax

    scores = learned.held_out_scores(sample)
    possible = np.flatnonzero(np.isfinite(scores[np.arange(len(scores)), sample.codes]))
    if not len(possible):
        return 0.0
    found = log_softmax(scores[possible], axis=1)[np.arange(len(possible)), sample.codes[possible]]
    return float(found.mean())
