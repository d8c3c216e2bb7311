"""Vectors in which every direction counts by what it tells of the class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_int, shown
from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.heads.base import Head
from clipretrieval.heads.covariance import check_shrinkage, oas_shrinkage, shrink_covariance
from clipretrieval.heads.discriminant import pooled_covariance
from clipretrieval.heads.statistics import ClassStatistics
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.retrieval.transform_plan import RAW, TransformPlan
from clipretrieval.types import AnyArray, Label

__all__ = ["AUTO", "Whitening", "plan_transform"]

Floats = npt.NDArray[np.float64]

AUTO, WHITEN = "auto", "whiten"
SMALLEST = 1e-10
"""Of a covariance's eigenvalues, relative to the largest: smaller ones are taken for this."""


@dataclass(frozen=True)
class Whitening:
    """Map vectors so that classes become spheres, and scale them to length one.

    The differences within classes have, after it, the same size in all directions, so that neighbors are near
    by what distinguishes classes and not by what all images vary in [1]_. The map is x ↦ (x − m) T, scaled to
    length one, where m is the mean of all and T Tᵀ the inverse of the covariance within classes, shrunk.

    Parameters
    ----------
    dim : int, optional
        Dimensions to keep, at least 1; None: all. The first are those in which the whitened classes' means
        differ most, at most one less than there are classes (Fisher's discriminants, [2]_); those that follow
        have the largest variance of what is left.
    shrinkage : "oas" or float in [0, 1]
        How far the covariance is drawn towards a multiple of the identity; see `Discriminant`.

    References
    ----------
    .. [1] A. Bar-Hillel, T. Hertz, N. Shental, D. Weinshall, "Learning a Mahalanobis metric from equivalence
       constraints", JMLR 6 (2005), pages 937-965: relevant component analysis.
    .. [2] K. Fukunaga, "Introduction to Statistical Pattern Recognition" (1990), section 10.2.
    """

    dim: int | None = None
    shrinkage: str | float = "oas"

    def __post_init__(self) -> None:
        if self.dim is not None:
            object.__setattr__(self, "dim", check_int(self.dim, "dim"))
        shrinkage = check_shrinkage(self.shrinkage)
        if shrinkage == "validated":
            raise InvalidInputError("shrinkage must be 'oas' or a number in [0, 1]; got 'validated'")
        object.__setattr__(self, "shrinkage", shrinkage)

    @property
    def settings(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"name": WHITEN, "dim": self.dim, "shrinkage": self.shrinkage}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Whitening:
        """Return what has these settings.

        Raises
        ------
        StoreCorruptedError
            If nothing has.
        """
        if settings.get("name") == WHITEN and settings.keys() == {"name", "dim", "shrinkage"}:
            try:
                return cls(settings["dim"], settings["shrinkage"])
            except InvalidInputError as error:
                raise StoreCorruptedError(f"the store's transform cannot be: {error}") from error
        raise StoreCorruptedError(
            f"the store's transform is {dict(settings)!r:.200}, which this version of the library does not "
            "know"
        )

    def learn(self, batches: Iterable[tuple[AnyArray, Sequence[Label]]]) -> LinearTransform:
        """Learn the map of vectors, each batch of shape (n, dim), and their labels.

        Raises
        ------
        InvalidInputError
            If there are none, or fewer dimensions than are to be kept.
        """
        statistics: ClassStatistics | None = None
        for vectors, labels in batches:
            if statistics is None:
                statistics = ClassStatistics(vectors.shape[1])
            statistics.add(vectors, labels)
        if statistics is None or not statistics.count:
            raise InvalidInputError("there are no vectors to learn a whitening from")
        return self.learn_of(statistics)

    def learn_of(self, statistics: ClassStatistics) -> LinearTransform:
        """Learn the map from class statistics."""
        if self.dim is not None and self.dim > statistics.dim:
            raise InvalidInputError(
                f"Whitening(dim={self.dim}) keeps more dimensions than the {statistics.dim} that vectors have"
            )
        covariance, freedom = pooled_covariance(statistics)
        amount = oas_shrinkage(covariance, freedom) if self.shrinkage == "oas" else float(self.shrinkage)
        values, axes = _principal(shrink_covariance(covariance, amount))
        matrix: Floats = axes / np.sqrt(np.maximum(values, SMALLEST * values[-1]))
        mean: Floats = statistics.sums.sum(axis=0) / statistics.count
        if self.dim not in (None, statistics.dim):
            matrix = matrix @ _leading(statistics, mean, covariance, matrix)[:, : self.dim]
        return LinearTransform(mean, matrix)


def _leading(statistics: ClassStatistics, mean: Floats, covariance: Floats, matrix: Floats) -> Floats:
    """Return directions of the whitened space, shape (dim, dim): the discriminants, then the widest."""
    means = ((statistics.means - mean) * np.sqrt(statistics.counts / statistics.count)[:, None]) @ matrix
    values, axes = _principal(means.T @ means)
    found = int((values > 1e-12 * max(values[-1], np.finfo(np.float64).tiny)).sum())
    found = min(found, len(means) - 1)
    axes = axes[:, ::-1]
    rest = axes[:, found:]
    _, order = _principal(rest.T @ (matrix.T @ covariance @ matrix) @ rest)
    return np.hstack([axes[:, :found], rest @ order[:, ::-1]])


def _principal(matrix: Floats) -> tuple[Floats, Floats]:
    """Return eigenvalues, ascending, and eigenvectors, whose signs do not hang on the last digits."""
    from scipy.linalg import eigh

    values, axes = eigh(matrix)
    largest = np.abs(axes).argmax(axis=0)
    return values, axes * np.sign(axes[largest, np.arange(len(values))])


def plan_transform(transform: Any, head: Head | None) -> TransformPlan:
    """Return what an estimator's arguments say of the vectors' map.

    Parameters
    ----------
    transform : {"auto", "whiten"}, None or Whitening
    head : Head or None
        One that has an attribute ``wants_whitening`` which is true has a store whitened that ``"auto"``
        fills from nothing.

    Raises
    ------
    InvalidInputError
        If there is no such transform.
    """
    if transform is None:
        return RAW
    if isinstance(transform, str) and transform == AUTO:
        wanted = Whitening() if getattr(head, "wants_whitening", False) else None
        return TransformPlan(wanted, auto=True, restore=Whitening.from_settings)
    if isinstance(transform, str) and transform == WHITEN:
        transform = Whitening()
    if not isinstance(transform, Whitening):
        raise InvalidInputError(
            f"unknown transform {shown(transform)}; pass 'auto', 'whiten', None, or a "
            "clipretrieval.heads.Whitening"
        )
    return TransformPlan(transform, restore=Whitening.from_settings)
