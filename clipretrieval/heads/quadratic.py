"""Gaussian classes, each with a covariance of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_number, shown
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.base import Contents, Queries
from clipretrieval.heads.covariance import check_shrinkage, oas_shrinkage, shrink_covariance
from clipretrieval.heads.discriminant import pooled_covariance
from clipretrieval.heads.statistics import Moments

__all__ = ["LearnedQuadratic", "Quadratic"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quadratic:
    """Quadratic discriminant analysis, regularised: normal classes, each with its mean and its covariance.

    Needs a second moment for each class, n_classes × dim² × 8 bytes, and as much again for what is learned. A
    query takes n_classes × dim² multiply-adds. Each class's covariance is drawn towards the pooled one, which
    is drawn towards a multiple of the identity [1]_.

    Parameters
    ----------
    pooling : "auto" or float in [0, 1]
        How far towards the pooled covariance: 0 leaves the class's own, 1 is the linear discriminant.
        ``"auto"``: dim / (dim + n) for a class of n vectors, as if dim vectors more had been seen with the
        pooled covariance. A class of a single vector has the pooled covariance.
    shrinkage : "oas" or float in [0, 1]
        Of the pooled covariance; see `Discriminant`.

    References
    ----------
    .. [1] J. H. Friedman, "Regularized discriminant analysis", Journal of the American Statistical
       Association 84 (1989), pages 165-175.
    """

    pooling: str | float = "auto"
    shrinkage: str | float = "oas"

    def __post_init__(self) -> None:
        if check_shrinkage(self.shrinkage) == "validated":
            raise InvalidInputError(
                "shrinkage='validated' is for the linear discriminant; pass 'oas' or a number"
            )
        if isinstance(self.pooling, str):
            if self.pooling != "auto":
                raise InvalidInputError(f"pooling must be 'auto' or a number in [0, 1]; got {self.pooling!r}")
        elif check_number(self.pooling, "pooling", least=0) > 1:
            raise InvalidInputError(f"pooling must lie in [0, 1]; got {shown(self.pooling)}")

    @property
    def k(self) -> int:
        """No neighbors are read."""
        return 0

    @property
    def moments(self) -> Sequence[Moments]:
        """A second moment for each class."""
        return (Moments(per_class=True),)

    def learn(self, contents: Contents) -> LearnedQuadratic:
        """Learn each class's mean and covariance."""
        statistics = contents.statistics(Moments(per_class=True))
        covariance, freedom = pooled_covariance(statistics)
        amount = oas_shrinkage(covariance, freedom) if self.shrinkage == "oas" else float(self.shrinkage)
        pooled = shrink_covariance(covariance, amount)
        single = [label for label, n in zip(contents.classes, statistics.counts, strict=True) if n < 2]
        if single and self.pooling != 1:
            warn_caller(
                f"{len(single)} of {len(contents.classes)} classes have a single image, such as "
                f"{single[0]!r}, which has no covariance: they take the pooled one"
            )
        whiteners, offsets = [], []
        with np.errstate(divide="ignore"):
            log_priors = np.log(contents.priors)
        for label, n, mean in zip(contents.classes, statistics.counts, statistics.means, strict=True):
            part = statistics.dim / (statistics.dim + n) if self.pooling == "auto" else float(self.pooling)
            own = pooled
            if n > 1 and part < 1:
                own = (1 - part) * (statistics.class_moment(label) / n - np.outer(mean, mean)) + part * pooled
            whiteners.append(_whitener(own))
            offsets.append(np.log(np.diag(whiteners[-1])).sum())
        return LearnedQuadratic(statistics.means, whiteners, np.array(offsets) + log_priors)


class LearnedQuadratic:
    """Means and covariances of normal classes.

    Parameters
    ----------
    means : ndarray of float64, shape (n_classes, dim)
    whiteners : sequence of ndarray of float64, each of shape (dim, dim)
        Each the inverse of the lower Cholesky factor of the class's covariance.
    offsets : ndarray of float64, shape (n_classes,)
        Log prior, less half the logarithm of the covariance's determinant.
    """

    def __init__(self, means: Floats, whiteners: Sequence[Floats], offsets: Floats) -> None:
        self._means, self._whiteners, self._offsets = means, whiteners, offsets

    def log_scores(self, queries: Queries) -> Floats:
        """Return log densities, less what is the same for all classes, shape (n, n_classes)."""
        x = queries.vectors.astype(np.float64)
        found = np.empty((len(x), len(self._means)))
        for code, (mean, whitener) in enumerate(zip(self._means, self._whiteners, strict=True)):
            deviations = (x - mean) @ whitener.T
            found[:, code] = self._offsets[code] - np.einsum("ij,ij->i", deviations, deviations) / 2
        return found


def _whitener(covariance: Floats) -> Floats:
    """Return the inverse of a covariance's lower Cholesky factor."""
    from scipy.linalg import cholesky, solve_triangular

    size, lift = len(covariance), np.trace(covariance) / len(covariance)
    for amount in (0.0, 1e-12, 1e-9, 1e-6):  # a singular one, where shrinkage was turned off
        lifted = covariance.copy()
        lifted.flat[:: size + 1] += amount * lift
        try:
            factor = cholesky(lifted, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            continue
        found: Floats = solve_triangular(factor, np.eye(size), lower=True, check_finite=False)
        return found
    raise InvalidInputError(
        "a class's covariance is singular; pass a shrinkage or a pooling above 0, such as Quadratic()"
    )
