"""A head's decision with calibrated probabilities and rejected images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.decision import Decision
from clipretrieval.retrieval.classes import UNKNOWN, ClassNumbers
from clipretrieval.trust.probability_maps import ProbabilityMap

__all__ = ["TrustedDecision"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrustedDecision:
    """A head's decision, calibrated, some images of which may be rejected.

    Attributes
    ----------
    raw : Decision
        Of the head.
    numbers : ClassNumbers
    calibrated : ProbabilityMap or None
    away : ndarray of bool, shape (n,), or None
        Which images are rejected.
    """

    raw: Decision
    numbers: ClassNumbers
    calibrated: ProbabilityMap | None
    away: npt.NDArray[np.bool_] | None

    @cached_property
    def answers(self) -> Ints:
        """The class of each query by number, `UNKNOWN` if it is rejected, shape (n,)."""
        return self._classes if self.away is None else np.where(self.away, UNKNOWN, self._classes)

    @cached_property
    def share_and_margin(self) -> tuple[Floats, Floats]:
        """The answers' probabilities, and their margins; 0 if an image is rejected."""
        if self.calibrated is None:
            share, margin = self.raw.share_and_margin
        else:
            rows, others = np.arange(len(self._classes)), self._probabilities.copy()
            share = others[rows, self._classes]
            others[rows, self._classes] = 0.0
            margin = np.maximum(share - others.max(axis=1), 0.0)
        if self.away is None:
            return share, margin
        return np.where(self.away, 0.0, share), np.where(self.away, 0.0, margin)

    @property
    def cells(self) -> tuple[Ints, Ints, Floats]:
        """The query, the class by number, and the probability of each cell, each of shape (n_cells,)."""
        if self.calibrated is None:
            return self.raw.cells
        n, size = self._probabilities.shape
        return np.repeat(np.arange(n), size), np.tile(np.arange(size), n), self._probabilities.ravel()

    @cached_property
    def _probabilities(self) -> Floats:
        if self.calibrated is None:
            raise RuntimeError("there are no probabilities but the head's own")
        return self.calibrated.apply(self.raw, self.numbers)

    @cached_property
    def _classes(self) -> Ints:
        """The most probable class of each query; of equal ones that of the head."""
        own = self.raw.answers
        if self.calibrated is None or not self.calibrated.changes_answers:
            return own
        found = self._probabilities
        best = found.argmax(axis=1)
        kept = found[np.arange(len(own)), own] >= found.max(axis=1)
        return np.where(kept, own, best)
