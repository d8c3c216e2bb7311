"""A head that has learned, ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.base import Head, LearnedHead, PartedHead, Queries
from clipretrieval.heads.decision import Decision, Posterior
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.types import FloatArray, Label, Neighbors

__all__ = ["DecisionRule", "FittedHead"]


class DecisionRule(Protocol):
    """What a classifier decides by: votes alone, or a head that has learned."""

    @property
    def k(self) -> int:
        """Neighbors that it reads of each query; 0 where it reads none."""
        ...

    @property
    def answers_all(self) -> bool:
        """Whether it gives each class a share, and not those of the neighbors alone."""
        ...

    @property
    def shown(self) -> int:
        """Neighbors to look up where they are shown too: at least `k` and 1; 0 where no vectors are kept."""
        ...

    def decide(self, vectors: FloatArray, near: Neighbors, numbers: ClassNumbers) -> Decision:
        """Answer queries, whose neighbors may be more than `k`."""
        ...

    def shares(self, near: Neighbors) -> npt.NDArray[np.float64]:
        """Return each neighbor's part of the votes of its row, shape (n, width); 0 where it has none."""
        ...

    def parts(self, vectors: FloatArray, near: Neighbors, numbers: ClassNumbers) -> dict[str, Decision]:
        """Return what each part by itself would have decided, by its name; none where there are no parts."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what reports say of it: JSON values."""
        ...


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A head with what it has learned.

    Attributes
    ----------
    head : Head
    learned : LearnedHead
    classes : sequence of (int or str)
        Of the columns of its scores, as stored.
    shown : int
        Neighbors to look up where they are shown too.
    name : str
    """

    head: Head
    learned: LearnedHead
    classes: Sequence[Label]
    shown: int
    name: str

    @property
    def k(self) -> int:
        """Neighbors that it reads of each query: no more than there were when it learned."""
        return min(int(self.head.k), self.shown)

    @property
    def answers_all(self) -> bool:
        """Yes: its scores have a column for each class."""
        return True

    def decide(self, vectors: FloatArray, near: Neighbors, numbers: ClassNumbers) -> Posterior:
        """Answer queries; neighbors beyond the first `k` are not read."""
        scores = self.learned.log_scores(Queries(vectors, near.first(self.k)))
        return Posterior.of(scores, numbers.of_classes(self.classes), len(vectors), type(self.head).__name__)

    def shares(self, near: Neighbors) -> npt.NDArray[np.float64]:
        """Return 0 for each neighbor: none has a vote of its own."""
        return np.zeros(near.distances.shape)

    def parts(self, vectors: FloatArray, near: Neighbors, numbers: ClassNumbers) -> dict[str, Decision]:
        """Return what each part by itself would have decided."""
        if not isinstance(self.learned, PartedHead):
            return {}
        queries, codes = Queries(vectors, near.first(self.k)), numbers.of_classes(self.classes)
        found = self.learned.part_scores(queries)
        return {name: Posterior.of(scores, codes, len(vectors), name) for name, scores in found.items()}

    def describe(self) -> dict[str, Any]:
        """Return its name and, where it reads neighbors, how many."""
        return {"head": self.name, **({"k": int(self.head.k)} if self.k else {})}
