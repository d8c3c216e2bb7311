"""The head that the study used: the nearest neighbors vote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_number
from clipretrieval.heads.decision import Decision
from clipretrieval.heads.votes import Candidates, Votes
from clipretrieval.heads.weighting import Weighting, check_weighting, vote_weights, weighting_name
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.stores.checks import check_k
from clipretrieval.types import FloatArray, Metric, Neighbors

__all__ = ["TEMPERATURE", "Voting"]

TEMPERATURE = 0.07
"""Of softmax, where none is given."""


@dataclass(frozen=True)
class Voting:
    """The rule by which neighbors decide on a class.

    Attributes
    ----------
    k : int
        Neighbors that vote, at least 1.
    weights : {"uniform", "distance", "softmax"} or callable
        See `vote_weights`.
    temperature : float
        Of ``weights="softmax"``; positive.
    metric : Metric
        Of the distances.
    """

    k: int
    weights: Weighting
    temperature: float
    metric: Metric

    def check(self) -> None:
        """Refuse what cannot work.

        Raises
        ------
        InvalidInputError
        """
        check_k(self.k)
        check_weighting(self.weights, self.metric)
        check_number(self.temperature, "temperature", above=0)

    def weigh(self, near: Neighbors) -> npt.NDArray[np.float64]:
        """Return the weight of each neighbor's vote, shape (n, k)."""
        return vote_weights(near.distances, self.weights, metric=self.metric, temperature=self.temperature)

    def votes(self, near: Neighbors, numbers: ClassNumbers) -> Votes:
        """Count the votes of neighbors, each of shape (n, k)."""
        candidates = Candidates.of(numbers.codes(near), near.distances, len(numbers))
        return candidates.votes(self.weigh(near), near.distances)

    @property
    def answers_all(self) -> bool:
        """No: a class without a vote has no share."""
        return False

    @property
    def shown(self) -> int:
        """Neighbors to look up where they are shown too: those that vote."""
        return self.k

    def decide(self, vectors: FloatArray, near: Neighbors, numbers: ClassNumbers) -> Votes:
        """Count the votes of neighbors; the queries' vectors are not read."""
        return self.votes(near, numbers)

    def parts(self, vectors: FloatArray, near: Neighbors, numbers: ClassNumbers) -> dict[str, Decision]:
        """Return nothing: the votes are all there is."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return the number of neighbors and the name of the weighting."""
        return {"head": "votes", "k": int(self.k), "weights": weighting_name(self.weights)}

    def shares(self, near: Neighbors) -> npt.NDArray[np.float64]:
        """Return each neighbor's part of the votes of its row, shape (n, k)."""
        weights = self.weigh(near)
        weights = weights / weights.max(axis=1, keepdims=True)  # so that the greatest have a finite sum
        shares: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return shares
