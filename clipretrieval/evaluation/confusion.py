"""Which class was taken for which, counted where it occurred: no table of all classes by all classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_int
from clipretrieval.types import AnyArray

__all__ = ["Confusion"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Confusion:
    """The cells of a confusion matrix that are not zero.

    Attributes
    ----------
    true, answer, count : ndarray of int64, shape (n_cells,)
        Classes by number, and how often they came together; ascending by `true`, then by `answer`.
    support, predicted : ndarray of int64, shape (n_classes,)
        How often each class was the true one, and the answer.
    """

    true: Ints
    answer: Ints
    count: Ints
    support: Ints
    predicted: Ints

    @classmethod
    def of(cls, y_true: AnyArray, y_pred: AnyArray, classes: AnyArray) -> Confusion:
        """Count labels and answers, each of shape (n,); those that are none of the classes have no cell."""
        n_classes = len(classes)
        places = {label: place for place, label in enumerate(np.asarray(classes).tolist())}
        true, answer = (
            np.array([places.get(label, -1) for label in np.asarray(labels).tolist()], dtype=np.int64)
            for labels in (y_true, y_pred)
        )
        known = (true >= 0) & (answer >= 0)
        cells, count = np.unique(true[known] * n_classes + answer[known], return_counts=True)
        return cls(
            true=cells // n_classes,
            answer=cells % n_classes,
            count=count.astype(np.int64),
            support=np.bincount(true[true >= 0], minlength=n_classes),
            predicted=np.bincount(answer[answer >= 0], minlength=n_classes),
        )

    @classmethod
    def of_matrix(cls, matrix: AnyArray) -> Confusion:
        """Take the counts of a whole matrix, shape (n_classes, n_classes)."""
        true, answer = np.nonzero(matrix)
        return cls(true, answer, matrix[true, answer], matrix.sum(axis=1), matrix.sum(axis=0))

    @property
    def n_classes(self) -> int:
        """Number of classes, those that never occurred included."""
        return len(self.support)

    @cached_property
    def correct(self) -> Ints:
        """How often each class was answered where it was true, shape (n_classes,)."""
        found, same = np.zeros(self.n_classes, dtype=np.int64), self.true == self.answer
        found[self.true[same]] = self.count[same]
        return found

    @property
    def mistakes(self) -> Ints:
        """In how many incorrect answers each class was the true one or the answer, shape (n_classes,)."""
        return self.support + self.predicted - 2 * self.correct

    def matrix(self, side: int = 1) -> AnyArray:
        """Return the whole matrix, or that of blocks of `side` neighboring classes: true ones in rows."""
        n_blocks = -(-self.n_classes // side)
        counts = np.zeros((n_blocks, n_blocks), dtype=np.int64)
        np.add.at(counts, (self.true // side, self.answer // side), self.count)
        return counts

    def pairs(self, classes: AnyArray, most: int | None = None) -> list[dict[str, Any]]:
        """Return the pairs of a true class and a wrong answer; see `metrics.confused_pairs`."""
        most = None if most is None else check_int(most, "most", least=0)
        wrong = np.flatnonzero(self.true != self.answer)
        chosen = wrong[np.argsort(-self.count[wrong], kind="stable")[:most]]
        true, answer, count = self.true[chosen], self.answer[chosen], self.count[chosen]
        shares = count / self.support[true]
        cells = zip(true.tolist(), answer.tolist(), count.tolist(), shares.tolist(), strict=True)
        return [
            {"true": name(classes, row), "answer": name(classes, column), "count": number, "share": share}
            for row, column, number, share in cells
        ]


def name(classes: AnyArray, place: int) -> Any:
    """Return one of some labels as a plain value."""
    return classes[place : place + 1].tolist()[0]
