"""What a fitted classifier knows from held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clipretrieval import errors
from clipretrieval._util.checks import shown
from clipretrieval._util.labels import label_kind, stored_labels
from clipretrieval._util.progress import Progress
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.retrieval.answer_places import AnswerPlaces
from clipretrieval.retrieval.classes import Classes
from clipretrieval.retrieval.retriever import Retriever
from clipretrieval.trust.basis import Basis
from clipretrieval.trust.calibrated import Calibrated
from clipretrieval.trust.conformal import check_coverage
from clipretrieval.trust.conformalized import Conformalized, ConformalReport, SetPredictor
from clipretrieval.trust.trusted_rule import Gate, TrustedRule
from clipretrieval.types import AnyArray, Label

__all__ = ["PredictionSets", "Trust", "check_unknown", "predict_sets", "score_samples"]

UNCONFORMALIZED = (
    "the classifier is not conformalized; call conformalize(X, y) with labeled images that it was not fit on"
)


class PredictionSets(NamedTuple):
    """The predictions for images, and a set of classes for each, which contains the true one.

    Attributes
    ----------
    labels : ndarray, shape (n,)
        As `RetrievalClassifier.predict` returns them.
    sets : ndarray of bool, shape (n, n_classes)
        Columns in the order of ``classes_``.
    """

    labels: AnyArray
    sets: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Trust:
    """What `conformalize` and `calibrate` were given; nothing where they were not called.

    Attributes
    ----------
    conformal : Conformalized or None
    calibrated : Calibrated or None
    """

    conformal: Conformalized | None = None
    calibrated: Calibrated | None = None

    def __bool__(self) -> bool:
        return self.conformal is not None or self.calibrated is not None

    @property
    def given(self) -> dict[str, frozenset[str]]:
        """The content ids of the images, by the method that was given them."""
        parts = {"calibrate": self.calibrated, "conformalize": self.conformal}
        return {name: frozenset(part.images.ids) for name, part in parts.items() if part is not None}

    def conformalized(self) -> Conformalized:
        """Return what prediction sets are computed from.

        Raises
        ------
        NotFittedError
        """
        if self.conformal is None:
            raise errors.NotFittedError(UNCONFORMALIZED)
        return self.conformal

    def rule(self, basis: Basis, turned_away: float) -> DecisionRule:
        """Return what decides: the head's own rule, calibrated, with images rejected.

        Parameters
        ----------
        basis : Basis
        turned_away : float
            How large a share of the images of known classes may be rejected, that is, answered with the
            index's `unknown`, if it has one.

        Raises
        ------
        NotFittedError
            If images are to be rejected, and it is not conformalized.
        InvalidInputError
            If there are too few held-out images to do so.
        """
        gate = None
        if basis.index.unknown is not None:
            if self.conformal is None:
                raise errors.NotFittedError(
                    f"unknown={basis.index.unknown!r} takes a threshold, and there is none: "
                    f"{UNCONFORMALIZED}, or set unknown=None"
                )
            least = self.conformal.least_likeness(basis, turned_away)
            gate = Gate(basis.index, self.conformal.measure(basis), least)
        answering = self.answering(basis)
        if gate is None:
            return answering
        calibrated = answering.calibrated if isinstance(answering, TrustedRule) else None
        return TrustedRule(basis.rule, calibrated, gate)

    def answering(self, basis: Basis) -> DecisionRule:
        """Return what decides if no image is rejected."""
        if self.calibrated is None:
            return basis.rule
        return TrustedRule(basis.rule, self.calibrated.map(basis))

    def predictor(self, basis: Basis, coverage: Any) -> SetPredictor:
        """Return what computes prediction sets.

        Raises
        ------
        NotFittedError
        InvalidInputError
            If `coverage` is none, or there are too few held-out images for it.
        """
        coverage = check_coverage(coverage)
        return self.conformalized().predictor(basis, self.answering(basis), self._token, coverage)

    def report(self, basis: Basis) -> ConformalReport | None:
        """Return the coverage that is possible; None if it is not conformalized."""
        if self.conformal is None:
            return None
        return self.conformal.report(basis, self.answering(basis), self._token)

    @property
    def _token(self) -> str | None:
        return None if self.calibrated is None else self.calibrated.token


def check_unknown(unknown: Any, classes: Classes | None, labels: Sequence[Any] = ()) -> Label | None:
    """Return the label for images of no known class, as stored; None if there is none.

    Parameters
    ----------
    unknown : bool, int, float, str or None
    classes : Classes, optional
        Those that are known.
    labels : sequence
        Others that will be classes. Without any of both, the type is not checked.

    Raises
    ------
    InvalidInputError
        If it is of another type than the classes, or one of them.
    """
    if unknown is None:
        return None
    fitted = classes.kind if classes is not None else label_kind(labels[:1]) if len(labels) else None
    try:
        kind = label_kind([unknown])
    except InvalidInputError as error:
        raise InvalidInputError(f"unknown must be None or a label; got {shown(unknown)}: {error}") from None
    if fitted not in (None, kind):
        raise InvalidInputError(
            f"unknown={unknown!r} is of the type {kind}, and the classes are of the type {fitted}; pass an "
            f"unknown of the type {fitted} that none of them has, or None"
        )
    (stored,) = stored_labels([unknown], kind)
    if (classes is not None and stored in classes.codes) or any(unknown == each for each in labels):
        raise InvalidInputError(
            f"unknown={unknown!r} is one of the classes; pass a label that none of them has, or forget that "
            "class: forget(label=…)"
        )
    return stored


def predict_sets(
    retriever: Retriever,
    head: DecisionRule,
    predictor: SetPredictor,
    X: Any,
    *,
    on_error: str,
    progress: Progress | bool | None,
) -> PredictionSets:
    """Predict labels and sets; see `RetrievalClassifier.predict_set`."""
    numbers, places = retriever.index.number_classes(), AnswerPlaces()
    codes, parts = list[npt.NDArray[np.int64]](), list[npt.NDArray[np.bool_]]()
    for batch, near in retriever.answered(
        X, head.k, places, numbers=numbers, on_error=on_error, progress=progress
    ):
        decision = head.decide(batch.vectors[VECTORS], near, numbers)
        codes.append(decision.answers)
        parts.append(predictor.sets(decision, batch.ids, numbers))
    labels = numbers.labels(np.concatenate(codes))
    columns, answered, first = numbers.columns(), np.array(places.places), 0
    sets = np.zeros((places.count, len(numbers)), dtype=np.bool_)
    for part in parts:
        rows = answered[first : first + len(part)]
        sets[rows[:, None], columns[None, : part.shape[1]]] = part
        first += len(part)
    return PredictionSets(
        labels if on_error == "raise" else places.arrange([labels.astype(object)], None), sets
    )


def score_samples(
    retriever: Retriever, basis: Basis, X: Any, *, on_error: str, progress: Progress | bool | None
) -> npt.NDArray[np.float64]:
    """Score how similar images are to the stored ones; see `RetrievalClassifier.score_samples`."""
    places, measure = AnswerPlaces(), basis.likeness()
    found = [
        measure.score(vectors, near)
        for vectors, near in retriever.answer(X, measure.k, places, on_error=on_error, progress=progress)
    ]
    scores: npt.NDArray[np.float64] = places.arrange(found, np.nan)
    return scores
