"""The answers of a decision rule to any number of images, in the order of the images."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_bool
from clipretrieval._util.progress import Progress
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.decision import Decision, Posterior
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.retrieval.answer_places import AnswerPlaces
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.retriever import Retriever
from clipretrieval.types import AnyArray, FloatArray, Neighbors

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["answer_labels", "answer_probabilities"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CELLS = 2**21
"""Of the scores that are computed together, where each class has one: 16 MB in float64."""
LEAST_ROWS = 8
"""Queries that are answered together, however many classes there are."""


def answer_labels(
    retriever: Retriever, rule: DecisionRule, X: Any, *, on_error: str, progress: Progress | bool | None
) -> AnyArray:
    """Return the label of each image; see `RetrievalClassifier.predict`."""
    numbers, places = retriever.index.number_classes(), AnswerPlaces()
    found = retriever.answer(X, rule.k, places, numbers=numbers, on_error=on_error, progress=progress)
    labels = numbers.labels(
        np.concatenate([decision.answers for _, decision in _decisions(found, rule, numbers)])
    )
    return labels if on_error == "raise" else places.arrange([labels.astype(object)], None)


def answer_probabilities(
    retriever: Retriever,
    rule: DecisionRule,
    X: Any,
    *,
    sparse: bool = False,
    on_error: str,
    progress: Progress | bool | None,
) -> Floats | csr_matrix:
    """Return the probability of each class; see `RetrievalClassifier.predict_proba`.

    Raises
    ------
    InvalidInputError
        If a sparse matrix is asked for, and no class has the probability 0.
    """
    if check_bool(sparse, "sparse") and rule.answers_all:
        raise InvalidInputError(
            f"sparse=True is for the votes of the nearest, which leave most classes at 0; by the head "
            f"{rule.describe()['head']!r} every class has a probability. Pass sparse=False, or set "
            "head='votes' and do without calibrate"
        )
    numbers, places = retriever.index.number_classes(), AnswerPlaces()
    found = retriever.answer(X, rule.k, places, numbers=numbers, on_error=on_error, progress=progress)
    shares = _Shares(numbers, retriever.count_hint(X))
    for rows, decision in _decisions(found, rule, numbers):
        shares.take(np.array(places.places[rows], dtype=np.int64), decision)
    return shares.matrix(places) if sparse else shares.array(places)


class _Shares:
    """The shares of all answers, which may have more classes at the end than at the beginning.

    Parameters
    ----------
    numbers : ClassNumbers
    count : int or None
        Of the images that are asked about, where that is known.
    """

    def __init__(self, numbers: ClassNumbers, count: int | None) -> None:
        self._numbers, self._count = numbers, count
        self._cells: list[tuple[Ints, Ints, Floats]] = []  # image, class by number, share
        self._whole: Floats | None = None  # of those decisions that have all cells, by the classes' numbers

    def take(self, images: Ints, decision: Decision) -> None:
        """Take up a decision on images, of which the places are given."""
        if isinstance(decision, Posterior) and self._count is not None and images.max() < self._count:
            if self._whole is None:
                self._whole = np.zeros((self._count, len(self._numbers)))
            width = self._whole.shape[1]
            if np.array_equal(decision.codes, np.arange(width)):
                self._whole[images] = decision.probabilities
                return
            if decision.codes.max(initial=0) < width:
                self._whole[images[:, None], decision.codes] = decision.probabilities
                return
        rows, codes, shares = decision.cells
        self._cells.append((images[rows], codes, shares))

    def array(self, places: AnswerPlaces) -> Floats:
        """Return all shares, shape (n, n_classes); NaN in the rows of images that were skipped."""
        columns, whole = self._numbers.columns(), self._whole
        shape = (places.count, len(columns))
        if whole is not None and whole.shape == shape and not self._numbers.turned_up:
            shares = whole
        else:
            shares = np.zeros(shape)
        if whole is not None and shares is not whole:
            rows = min(len(whole), len(shares))
            shares[:rows, columns[: whole.shape[1]]] = whole[:rows]
        for images, codes, part in self._cells:
            shares[images, columns[codes]] = part
        shares[[image.index for image in places.skipped]] = np.nan
        return shares

    def matrix(self, places: AnswerPlaces) -> csr_matrix:
        """Return the shares that are not 0, shape (n, n_classes)."""
        from scipy.sparse import csr_matrix

        columns = self._numbers.columns()
        images, codes, shares = (np.concatenate(parts) for parts in zip(*self._cells, strict=True))
        found = csr_matrix((shares, (images, columns[codes])), shape=(places.count, len(columns)))
        found.eliminate_zeros()
        return found


def _decisions(
    found: Iterator[tuple[FloatArray, Neighbors]], rule: DecisionRule, numbers: ClassNumbers
) -> Iterator[tuple[slice, Decision]]:
    """Yield decisions, each with the place of its queries among all; few at a time where classes are many."""
    most = max(LEAST_ROWS, CELLS // max(1, len(numbers)))
    first = 0
    for vectors, near in found:
        parts = -(-len(near) // most) if rule.answers_all else 1
        bounds = [part * len(near) // parts for part in range(parts + 1)]
        for start, end in itertools.pairwise(bounds):
            place = slice(first + start, first + end)
            yield place, rule.decide(vectors[start:end], near.part(start, end), numbers)
        first += len(near)
