"""A decision rule with calibrated probabilities and rejected images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.decision import Decision
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.trust.basis import Basis
from clipretrieval.trust.likeness import Likeness
from clipretrieval.trust.probability_maps import ProbabilityMap
from clipretrieval.trust.trusted_decision import TrustedDecision
from clipretrieval.types import FloatArray, Neighbors

__all__ = ["Gate", "TrustedRule", "gate_of"]


@dataclass(frozen=True, eq=False)
class Gate:
    """Which images are answered, and which are rejected as unknown.

    Attributes
    ----------
    index : LabelledIndex
    measure : Likeness
    least : float
        Images with a lower score are rejected; −inf: none is.
    """

    index: LabelledIndex
    measure: Likeness
    least: float

    def score(self, vectors: FloatArray, near: Neighbors) -> npt.NDArray[np.float64]:
        """Return how much queries are like what is stored, shape (n,); it may look for more neighbors."""
        if near.distances.shape[1] < self.measure.k:
            # A search of its own: with another k an approximate store may find others to vote.
            near = self.index.look_up(vectors, min(self.measure.k, self.index.store.count()))
        return self.measure.score(vectors, near)

    def turns_away(self, vectors: FloatArray, near: Neighbors) -> npt.NDArray[np.bool_]:
        """Return which queries are rejected, shape (n,)."""
        found: npt.NDArray[np.bool_] = self.score(vectors, near) < self.least
        return found


@dataclass(frozen=True, eq=False)
class TrustedRule:
    """A `DecisionRule` on top of another one.

    Attributes
    ----------
    rule : DecisionRule
    calibrated : ProbabilityMap or None
    gate : Gate or None
    """

    rule: DecisionRule
    calibrated: ProbabilityMap | None = None
    gate: Gate | None = None

    @property
    def k(self) -> int:
        """Neighbors that the rule reads of each query."""
        return self.rule.k

    @property
    def answers_all(self) -> bool:
        """Whether it gives each class a share: a calibration does."""
        return self.calibrated is not None or self.rule.answers_all

    @property
    def shown(self) -> int:
        """Neighbors to look up where they are shown too."""
        return self.rule.shown

    def decide(self, vectors: FloatArray, near: Neighbors, numbers: ClassNumbers) -> TrustedDecision:
        """Answer queries."""
        away = None if self.gate is None else self.gate.turns_away(vectors, near)
        return TrustedDecision(self.rule.decide(vectors, near, numbers), numbers, self.calibrated, away)

    def shares(self, near: Neighbors) -> npt.NDArray[np.float64]:
        """Return each neighbor's part of the votes."""
        return self.rule.shares(near)

    def parts(self, vectors: FloatArray, near: Neighbors, numbers: ClassNumbers) -> dict[str, Decision]:
        """Return what each part by itself would have decided."""
        return self.rule.parts(vectors, near, numbers)

    def describe(self) -> dict[str, Any]:
        """Return what reports say of it: calibrated shares are no longer shares of the votes."""
        told = self.rule.describe()
        return told if self.calibrated is None else {**told, "head": f"{told['head']}, calibrated"}


def gate_of(rule: DecisionRule, basis: Basis) -> Gate:
    """Return what a rule rejects images by; one that scores images and rejects none where it rejects none."""
    own = rule.gate if isinstance(rule, TrustedRule) else None
    return own or Gate(basis.index, basis.likeness(), -np.inf)
