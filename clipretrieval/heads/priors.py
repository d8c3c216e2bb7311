"""How probable each class is before anything is seen of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import shown
from clipretrieval._util.foreign import as_array
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import Label

__all__ = ["Priors"]

Floats = npt.NDArray[np.float64]

NAMED = ("equal", "empirical")


@dataclass(frozen=True)
class Priors:
    """The classifier's argument of this name, checked.

    Attributes
    ----------
    given : {"equal", "empirical"} or tuple of float
        As likely as one another; as often as they are stored; or one for each of ``classes_``, in its order.
    """

    given: str | tuple[float, ...] = "equal"

    @classmethod
    def parse(cls, priors: Any) -> Priors:
        """Check priors.

        Raises
        ------
        InvalidInputError
            If they are neither one of the names nor numbers that are not negative, one of them positive.
        """
        if isinstance(priors, Priors):
            return priors
        if isinstance(priors, str) and priors in NAMED:
            return cls(priors)
        wanted = (
            "priors must be 'equal', 'empirical', or finite numbers of at least 0, one for each class and "
            "not all of them 0"
        )
        try:
            found = as_array(priors, "priors").astype(np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError(f"{wanted}; got {shown(priors)}") from error
        if found.ndim != 1 or not np.isfinite(found).all() or (found < 0).any() or not found.any():
            raise InvalidInputError(f"{wanted}; got {shown(priors)}")
        return cls(tuple(found.tolist()))

    def of(self, classes: list[Label], counts: npt.NDArray[np.int64], codes: Mapping[Label, int]) -> Floats:
        """Return the probability of each class that has a vector.

        Parameters
        ----------
        classes : list of (int or str)
            As stored.
        counts : ndarray of int64, shape (n_classes,)
            Of their vectors.
        codes : mapping of (int or str) to int
            Each class's place in ``classes_``.

        Returns
        -------
        ndarray of float64, shape (n_classes,)
            Sums to 1.

        Raises
        ------
        InvalidInputError
            If there are not as many priors as classes, or those of all classes that have a vector are 0.
        """
        if self.given == "equal":
            return np.full(len(classes), 1.0 / len(classes))
        if self.given == "empirical":
            empirical: Floats = counts / counts.sum()
            return empirical
        if len(self.given) != len(codes):
            raise InvalidInputError(
                f"there are {len(self.given)} priors and {len(codes)} classes; pass one for each of "
                "classes_, in its order, or priors='equal'"
            )
        found = np.array([self.given[codes[label]] if label in codes else 0.0 for label in classes])
        if not found.any():
            raise InvalidInputError(
                "the priors of all classes that have an image are 0; one must be positive"
            )
        scaled: Floats = found / found.sum()
        return scaled
