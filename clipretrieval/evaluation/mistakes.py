"""The worst mistakes: wrong answers that were given with the most certainty."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.repr import short_repr
from clipretrieval._util.text import readable
from clipretrieval.explanation import Explanation, explain_found
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.types import AnyArray, FloatArray, Neighbors

__all__ = ["Mistake", "WorstMistakes"]

SHOWN_NEIGHBORS = 5
"""Neighbors to show of each mistake, where fewer voted."""

LISTED_NEIGHBORS = 8
"""The most neighbors of one mistake that are written down."""


@dataclass(frozen=True)
class Mistake:
    """A wrong answer, and what it rests on.

    Attributes
    ----------
    index : int
        Place among the images answered, counted from 0.
    truth : bool, int, float or str
        The true label, as a plain Python value.
    distance : float
        To the nearest neighbor.
    explanation : Explanation
        The answer, its share of the votes, and the neighbors.
    """

    index: int
    truth: Any
    distance: float
    explanation: Explanation

    def __repr__(self) -> str:
        answer = self.explanation.answer
        return short_repr(self, index=self.index, truth=self.truth, answer=answer, distance=self.distance)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values, of the neighbors the first eight."""
        found = self.explanation.to_dict()
        found["neighbors"] = [
            {**each, "source": each["source"] and readable(each["source"])}
            for each in found["neighbors"][:LISTED_NEIGHBORS]
        ]
        return {"index": self.index, "true": self.truth, **found}


@dataclass(frozen=True, eq=False)
class _Candidate:
    index: int
    query: str | None
    margin: float
    near: Neighbors
    vector: FloatArray

    # Which of two with the same certainty and distance stays is decided by their places.
    def __lt__(self, other: _Candidate) -> bool:
        return self.index > other.index


class WorstMistakes:
    """Collects, batch by batch, the wrong answers with the greatest shares, the nearest first among equals.

    Parameters
    ----------
    most : int
        How many to keep; a bounded number of vectors is held.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, float, _Candidate]] = []

    def add(
        self,
        first: int,
        wrong: npt.NDArray[np.bool_],
        shares: npt.NDArray[np.float64],
        margins: npt.NDArray[np.float64],
        near: Neighbors,
        queries: list[str | None],
        vectors: FloatArray,
    ) -> None:
        """Take the worst of a batch whose first image has the place `first`; all else has a row an image."""
        nearest = near.nearest
        places = np.flatnonzero(wrong)
        order = np.lexsort((places, nearest[places], -shares[places]))
        for row in places[order[: self._most]].tolist():
            rank = (float(shares[row]), -float(nearest[row]))
            if len(self._heap) == self._most and rank <= self._heap[0][:2]:
                break
            kept = Neighbors(
                near.ids[row : row + 1], near.distances[row : row + 1], near.labels[row : row + 1]
            )
            margin = float(margins[row])
            found = _Candidate(first + row, queries[row], margin, kept, vectors[row].copy())
            push = heapq.heappush if len(self._heap) < self._most else heapq.heappushpop
            push(self._heap, (*rank, found))

    def explained(
        self, index: LabelledIndex, head: DecisionRule, y_true: AnyArray, y_pred: AnyArray
    ) -> Iterator[Mistake]:
        """Yield the mistakes, the worst first, given the labels of all images answered."""
        ranked = sorted(self._heap, reverse=True)
        if not ranked:
            return
        found = [item for *_, item in ranked]
        near = Neighbors(
            *(
                np.concatenate([getattr(item.near, name) for item in found])
                for name in ("ids", "distances", "labels")
            )
        )
        explanations = explain_found(
            index,
            head,
            near,
            queries=[item.query for item in found],
            answers=y_pred[[item.index for item in found]].tolist(),
            shares=[share for share, *_ in ranked],
            margins=[item.margin for item in found],
            vectors=np.stack([item.vector for item in found]),
            shown=SHOWN_NEIGHBORS,
        )
        for item, explanation in zip(found, explanations, strict=True):
            truth, distance = y_true[[item.index]].tolist()[0], float(item.near.nearest[0])
            yield Mistake(item.index, truth, distance, explanation)
