"""What a head has decided on some queries, whichever head it was."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from clipretrieval.errors import InvalidInputError

__all__ = ["Decision", "Posterior"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Decision(Protocol):
    """The answers to n queries, with the share of each class.

    A *cell* is a pair of a query and a class that has a share of its decision; all others have none.
    """

    @property
    def answers(self) -> Ints:
        """The class of each query by number, shape (n,)."""
        ...

    @property
    def share_and_margin(self) -> tuple[Floats, Floats]:
        """The answers' shares, and how far these are ahead of the second classes', each of shape (n,)."""
        ...

    @property
    def cells(self) -> tuple[Ints, Ints, Floats]:
        """The query, the class by number, and the share of each cell, each of shape (n_cells,)."""
        ...


@dataclass(frozen=True, eq=False)
class Posterior:
    """The probability of every class.

    Attributes
    ----------
    log_scores : ndarray of float64, shape (n, n_classes)
        Logarithms of what is proportional to the probabilities.
    codes : ndarray of int64, shape (n_classes,)
        Each column's class by number.
    """

    log_scores: Floats
    codes: Ints

    @classmethod
    def of(cls, log_scores: npt.ArrayLike, codes: Ints, n: int, head: str) -> Posterior:
        """Take the scores of a head, which may be a user's own.

        Raises
        ------
        InvalidInputError
            If they are none: of another shape, NaN or +inf, or −inf for every class.
        """
        scores = np.asarray(log_scores, dtype=np.float64)
        if scores.shape != (n, len(codes)):
            raise InvalidInputError(
                f"{head}.log_scores returned shape {scores.shape}; it must return {(n, len(codes))}, a row "
                "for each query and a column for each class"
            )
        if not np.isfinite(scores.max(axis=1, initial=-np.inf)).all() or np.isnan(scores).any():
            raise InvalidInputError(
                f"{head}.log_scores returned NaN, +inf, or −inf for every class; each row needs a finite "
                "score"
            )
        return cls(scores, codes)

    @cached_property
    def probabilities(self) -> Floats:
        """Shape (n, n_classes); rows sum to 1."""
        from scipy.special import softmax

        found: Floats = softmax(self.log_scores, axis=1)
        return found

    @cached_property
    def answers(self) -> Ints:
        """The most probable class of each query; of equal ones the first."""
        found: Ints = self.codes[self.log_scores.argmax(axis=1)]
        return found

    @cached_property
    def share_and_margin(self) -> tuple[Floats, Floats]:
        """The probability of each answer, and how far it is ahead of the second."""
        best = self.probabilities.max(axis=1)
        if self.probabilities.shape[1] == 1:
            return best, best
        second = np.partition(self.probabilities, -2, axis=1)[:, -2]
        return best, best - second

    @property
    def cells(self) -> tuple[Ints, Ints, Floats]:
        """All pairs of a query and a class."""
        n, size = self.probabilities.shape
        return np.repeat(np.arange(n), size), np.tile(self.codes, n), self.probabilities.ravel()
