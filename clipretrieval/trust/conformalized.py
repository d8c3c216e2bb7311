"""Prediction sets, and a threshold for unknown images, from held-out images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import shown
from clipretrieval._util.repr import short_repr
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.decision import Decision
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.retrieval.classes import UNKNOWN, ClassNumbers
from clipretrieval.trust.basis import Basis, Remembered
from clipretrieval.trust.calibration_images import NAMED, CalibrationImages
from clipretrieval.trust.conformal import (
    ConformalRule,
    Ranked,
    choose_regularisation,
    draws,
    greater_share,
    least_images,
)
from clipretrieval.trust.likeness import Likeness
from clipretrieval.trust.probability_maps import class_probabilities
from clipretrieval.types import Label

__all__ = ["ConformalReport", "Conformalized", "LikenessEvidence", "SetPredictor", "ShareEvidence"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

TUNED, MOST_TUNED = 0.2, 1000
"""The share of the images, and how many at most, that the penalty of RAPS is chosen on."""


@dataclass(frozen=True, eq=False)
class ShareEvidence:
    """How the true classes of held-out images rank among all classes.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Which of the images these are.
    ranked : Ranked
        Each array of shape (n,).
    """

    rows: Ints
    ranked: Ranked


@dataclass(frozen=True, eq=False)
class LikenessEvidence:
    """How similar held-out images are to the stored ones.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Which of the images these are.
    scores : ndarray of float64, shape (n,)
    """

    rows: Ints
    scores: Floats


@dataclass(frozen=True)
class ConformalReport:
    """What `conformalize` was given, and the coverage that it is enough for.

    Attributes
    ----------
    score : {"lac", "aps", "raps"}
    class_conditional : bool
    n : int
        Images that are used: those that were stored since, or that the penalty was chosen on, are not.
    most_coverage : float
        The highest coverage that they are enough for; class-conditional, of the classes that have images.
    """

    score: str
    class_conditional: bool
    n: int
    most_coverage: float

    def __repr__(self) -> str:
        return short_repr(self, **vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return dict(vars(self))


@dataclass(eq=False)
class Conformalized:
    """What `conformalize` was given, and what follows from it for the store as it is now.

    Attributes
    ----------
    images : CalibrationImages
    rule : ConformalRule
    shares : Remembered or None
    likeness : Remembered or None
        What was computed last.
    """

    images: CalibrationImages
    rule: ConformalRule
    shares: Remembered[ShareEvidence] | None = None
    likeness: Remembered[LikenessEvidence] | None = None
    _predictor: Remembered[SetPredictor] | None = None
    _measure: Remembered[Likeness] | None = None

    def evidence(self, basis: Basis, answering: DecisionRule, calibrated: str | None) -> ShareEvidence:
        """Return how true classes rank.

        Parameters
        ----------
        basis : Basis
        answering : DecisionRule
            With calibrated probabilities, where there are any.
        calibrated : str or None
            The token of these.
        """
        key, known = basis.key(calibrated), self.shares
        if known is None or not known.key.is_same(key):
            rows = basis.counted(self.images)
            images, numbers = self.images.take(rows.tolist()), basis.index.number_classes()
            codes = numbers.of_labels(images.labels)
            found, first = list[Ranked](), 0
            for _, _, decision in basis.decide(images, numbers, answering):
                ranked = Ranked.of(class_probabilities(decision, numbers))
                found.append(ranked.at(codes[first : first + len(ranked.own)]))
                first += len(ranked.own)
            columns = (
                np.concatenate([getattr(each, name) for each in found] or [np.zeros(0)]) for name in _RANKED
            )
            known = self.shares = Remembered(key, ShareEvidence(rows, Ranked(*columns)))
        return known.value

    def report(self, basis: Basis, answering: DecisionRule, calibrated: str | None) -> ConformalReport:
        """Return the coverage that is possible."""
        return self.promise(self.evidence(basis, answering, calibrated).rows)

    def promise(self, rows: npt.NDArray[np.integer[Any]]) -> ConformalReport:
        """Return the coverage that some of the images are enough for.

        Parameters
        ----------
        rows : ndarray of int
            Those that are used.
        """
        kept = np.flatnonzero(~self._tuned(rows))
        least = min(map(len, self._groups(rows, kept).values()), default=0)
        return ConformalReport(self.rule.score, self.rule.class_conditional, len(kept), least / (least + 1))

    def warn_of_classes(self, classes: Iterable[Label]) -> None:
        """Name those classes without images, for which nothing is guaranteed though each class should be."""
        missing = sorted(set(classes) - set(self.images.labels), key=str)
        if missing and self.rule.class_conditional:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            what = "class" if len(missing) == 1 else "classes"
            warn_caller(
                f"there are no held-out images of the {what} {', '.join(map(shown, missing[:NAMED]))}{more}: "
                "every prediction set will contain such a class, and any number of its images may be "
                "answered with unknown=. Conformalize with images of every class"
            )

    def likenesses(self, basis: Basis) -> LikenessEvidence:
        """Return how similar the images are to the stored ones."""
        key, known = basis.key(), self.likeness
        if known is None or not known.key.is_same(key):
            rows, measure = basis.counted(self.images), self.measure(basis)
            parts = [
                measure.score(vectors, near)
                for vectors, near in basis.look_up(self.images.take(rows.tolist()), measure.k)
            ]
            known = self.likeness = Remembered(
                key, LikenessEvidence(rows, np.concatenate([np.zeros(0), *parts]))
            )
        return known.value

    def measure(self, basis: Basis) -> Likeness:
        """Return what measures how similar an image is to the stored ones."""
        key, known = basis.key(), self._measure
        if known is None or not known.key.is_same(key):
            known = self._measure = Remembered(key, basis.likeness())
        return known.value

    def least_likeness(self, basis: Basis, turned_away: float) -> float:
        """Return the score below which an image is rejected.

        At most a share `turned_away` of the images of known classes score lower, as the conformal p-values of
        their scores are uniform; ties are not rejected. Class-conditional: of the images of each class that
        has held-out images.

        Raises
        ------
        InvalidInputError
            If there are too few images for that.
        """
        found = self.likenesses(basis)
        groups = self._groups(found.rows, np.arange(len(found.rows)))
        self._check_enough(groups, turned_away, f"reject at most {turned_away:g}")
        places = {label: int(turned_away * (len(rows) + 1) + 1e-9) - 1 for label, rows in groups.items()}
        return min(float(np.sort(found.scores[rows])[places[label]]) for label, rows in groups.items())

    def predictor(
        self, basis: Basis, answering: DecisionRule, calibrated: str | None, coverage: float
    ) -> SetPredictor:
        """Return what computes prediction sets.

        Raises
        ------
        InvalidInputError
            If there are too few images for the coverage.
        """
        key, known = basis.key(f"{calibrated} {coverage!r}"), self._predictor
        if known is None or not known.key.is_same(key):
            evidence = self.evidence(basis, answering, calibrated)
            known = self._predictor = Remembered(key, self._predict(basis, answering, evidence, coverage))
        return known.value

    def _predict(
        self, basis: Basis, answering: DecisionRule, evidence: ShareEvidence, coverage: float
    ) -> SetPredictor:
        rule, error = self.rule, 1 - coverage
        ids = [self.images.ids[row] for row in evidence.rows]
        parts, tuned = draws(ids, rule.random_state, "part"), self._tuned(evidence.rows)
        numbers, kept = basis.index.number_classes(), np.flatnonzero(~tuned)
        groups = self._groups(evidence.rows, kept)
        self._check_enough(groups, error, f"cover {coverage:g}")
        penalty, free = rule.penalty or 0.0, rule.free_classes or 0
        if rule.chooses and tuned.any():
            images = self.images.take(evidence.rows[tuned].tolist())
            found = [
                class_probabilities(decision, numbers)
                for _, _, decision in basis.decide(images, numbers, answering)
            ]
            codes = numbers.of_labels(images.labels)
            penalty, free = choose_regularisation(rule, np.concatenate(found), codes, parts[tuned], error)
        scores = rule.scores(evidence.ranked.take(kept), parts[kept], penalty, free)
        held = {label: np.sort(scores[rows]) for label, rows in groups.items()}
        return SetPredictor(rule, held, error, penalty, free)

    def _tuned(self, rows: npt.NDArray[np.integer[Any]]) -> Flags:
        """Return which images the penalty of RAPS is chosen on."""
        found = np.zeros(len(rows), dtype=np.bool_)
        if self.rule.chooses:
            order = draws([self.images.ids[row] for row in rows], self.rule.random_state, "tuned")
            found[np.argsort(order, kind="stable")[: min(MOST_TUNED, int(TUNED * len(rows)))]] = True
        return found

    def _groups(self, rows: npt.NDArray[np.integer[Any]], kept: Ints) -> dict[Label | None, Ints]:
        """Return which images are compared with each other, by class or all under None.

        Parameters
        ----------
        rows : ndarray of int, shape (n,)
            The images that are used. A class without any has no group: nothing is known of it.
        kept : ndarray of int64, shape (n_kept,)
            Places among `rows` of those that the penalty was not chosen on.

        Returns
        -------
        mapping of (int or str or None) to ndarray of int64
            Places among `kept`.
        """
        if not self.rule.class_conditional:
            return {None: np.arange(len(kept))}
        labels = [self.images.labels[row] for row in rows]
        found: dict[Label | None, list[int]] = {label: [] for label in labels}
        for place, row in enumerate(kept.tolist()):
            found[labels[row]].append(place)
        return {label: np.array(places, dtype=np.int64) for label, places in found.items()}

    def _check_enough(self, groups: dict[Label | None, Ints], error: float, purpose: str) -> None:
        least = least_images(error)
        nothing: tuple[Label | None, Ints] = (None, np.zeros(0, dtype=np.int64))
        label, rows = min(groups.items(), key=lambda item: len(item[1]), default=nothing)
        if len(rows) >= least:
            return
        each = "" if label is None else " of each class"
        whose = "" if label is None else f" of the class {label!r}"
        total = len(self.images)
        lost = ""
        if not each and len(rows) < total:
            lost = f" (of {total}: others are stored by now, or the penalty was chosen on them)"
        raise InvalidInputError(
            f"{len(rows)} held-out images{whose}{lost} are too few to {purpose}: at least "
            f"{least}{each} are needed. Call conformalize with more, or ask for less"
        )


_RANKED = ("own", "above", "rank")


@dataclass(frozen=True, eq=False)
class SetPredictor:
    """Computes prediction sets: the classes whose nonconformity is not too high.

    Attributes
    ----------
    rule : ConformalRule
    held : mapping of (int or str) to ndarray of float64
        The nonconformity scores of held-out images, ascending, by their class; all under None.
    error : float
    penalty, free_classes
        Of RAPS.
    """

    rule: ConformalRule
    held: dict[Label | None, Floats]
    error: float
    penalty: float
    free_classes: int

    def sets(self, decision: Decision, ids: Sequence[str], numbers: ClassNumbers) -> Flags:
        """Return the classes of each image's set, shape (n, n_classes), columns by the classes' numbers.

        Empty if the image is rejected.
        """
        rule = self.rule
        ranked = Ranked.of(class_probabilities(decision, numbers))
        parts = draws(ids, rule.random_state, "part")[:, None]
        ties = draws(ids, rule.random_state, "tie")[:, None] if rule.randomized else np.ones((len(ids), 1))
        scores = rule.scores(ranked, parts, self.penalty, self.free_classes)
        if None in self.held:
            values = greater_share(self.held[None], scores, ties)
        else:
            values = np.ones(scores.shape)  # a class without held-out images cannot be left out
            labels = [label for label in self.held if label is not None]
            for label, code in zip(labels, numbers.of_labels(labels).tolist(), strict=True):
                if code >= 0:
                    values[:, code] = greater_share(self.held[label], scores[:, code], ties[:, 0])
        found: Flags = values > self.error + 1e-9
        found[decision.answers == UNKNOWN] = False
        return found
