"""Covariances that can be inverted, of any number of vectors in any number of dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_number, shown
from clipretrieval.errors import InvalidInputError

__all__ = ["SHRINKAGES", "Solve", "check_shrinkage", "oas_shrinkage", "shrink_covariance", "solver"]

Floats = npt.NDArray[np.float64]
Solve = Callable[[Floats], Floats]

EPSILON = float(np.finfo(np.float64).eps)
SHRINKAGES = ("oas", "validated")


def check_shrinkage(shrinkage: Any) -> str | float:
    """Return a shrinkage: ``"oas"``, ``"validated"``, or a number in [0, 1].

    Raises
    ------
    InvalidInputError
    """
    if isinstance(shrinkage, str):
        if shrinkage not in SHRINKAGES:
            raise InvalidInputError(
                f"unknown shrinkage {shown(shrinkage)}; choose 'oas', 'validated', or a number in [0, 1]"
            )
        return shrinkage
    number = check_number(shrinkage, "shrinkage", least=0)
    if number > 1:
        raise InvalidInputError(f"shrinkage must lie in [0, 1]; got {shown(shrinkage)}")
    return number


def shrink_covariance(covariance: Floats, shrinkage: float) -> Floats:
    """Draw a covariance towards the multiple of the identity that has the same trace.

    Parameters
    ----------
    covariance : ndarray of float64, shape (dim, dim)
    shrinkage : float
        In [0, 1]: 0 changes nothing, 1 leaves the multiple of the identity.

    Returns
    -------
    ndarray of float64, shape (dim, dim)
        (1 − s) Σ + s (tr Σ / dim) I, as ``sklearn.covariance.shrunk_covariance`` has it.
    """
    found: Floats = (1 - shrinkage) * covariance
    found.flat[:: len(found) + 1] += shrinkage * np.trace(covariance) / len(covariance)
    return found


def oas_shrinkage(covariance: Floats, freedom: int) -> float:
    """Return how far a covariance that was estimated should be drawn towards the identity.

    Parameters
    ----------
    covariance : ndarray of float64, shape (dim, dim)
    freedom : int
        Degrees of freedom of the estimate: vectors less the means that were estimated too.

    Returns
    -------
    float
        In [0, 1]: the oracle-approximating shrinkage [1]_ in the form of ``sklearn.covariance.OAS``.

    References
    ----------
    .. [1] Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero, "Shrinkage algorithms for MMSE covariance estimation",
       IEEE Transactions on Signal Processing 58 (2010), pages 5016-5029, equation 23.
    """
    dim, mean = len(covariance), float(np.trace(covariance)) / len(covariance)
    square = float((covariance**2).mean())
    below = (max(freedom, 0) + 1.0) * (square - mean**2 / dim)
    return 1.0 if below <= 0 else min((square + mean**2) / below, 1.0)


def solver(matrix: Floats, noise: float = 0.0) -> Solve:
    """Return what solves ``matrix @ x = b`` for one or many b; the shortest x where it is singular.

    Parameters
    ----------
    matrix : ndarray of float64, shape (dim, dim)
        Symmetric and, but for rounding, not negative.
    noise : float
        Eigenvalues that rounding may have made of 0.
    """
    from scipy.linalg import cho_factor, cho_solve

    least = max(noise, EPSILON * float(np.trace(matrix)) / len(matrix))
    try:
        factor = cho_factor(matrix, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return _pseudo_inverse(matrix, least)
    if np.diag(factor[0]).min() ** 2 <= least:
        return _pseudo_inverse(matrix, least)
    return lambda b: np.asarray(cho_solve(factor, b, check_finite=False))


def _pseudo_inverse(matrix: Floats, least: float) -> Solve:
    values, vectors = np.linalg.eigh(matrix)
    kept = values > max(least, EPSILON * len(matrix) * values.max(initial=0.0))
    scaled = vectors[:, kept] / values[kept]
    return lambda b: np.asarray(scaled @ (vectors[:, kept].T @ b))
