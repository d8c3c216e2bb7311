"""When an image leaves: how probable it is that only the last exit would be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from clipretrieval._util.checks import check_choice
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.types import AnyArray

__all__ = ["CERTAINTIES", "ExitEvidence", "ExitPolicy"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CERTAINTIES = ("combined", "margin", "agreement", "distance")
"""What tells how sure an exit is."""
THRESHOLDS = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 161)])
"""How probable it may be that only the last exit is right, in the order of their risk."""
LEAST_MARGIN = 1e-6
LEAST_DISTANCE = 1e-12
STRENGTH = 10.0
"""Of the logistic regressions' coefficients beforehand, as their variance."""


@dataclass(frozen=True, eq=False)
class ExitEvidence:
    """What each exit said of some images, all of which went to the last.

    Attributes
    ----------
    margins : ndarray of float64, shape (n_exits, n)
        How far the first class is ahead of the second, in [0, 1].
    agrees : ndarray of bool, shape (n_exits, n)
        Whether the exit before gave the same answer; False at the first.
    distances : ndarray of float64, shape (n_exits, n)
        To the nearest neighbor; NaN where none was looked up.
    correct : ndarray of bool, shape (n_exits, n)
    """

    margins: Floats
    agrees: Bools
    distances: Floats
    correct: Bools

    @classmethod
    def from_answers(
        cls, answers: AnyArray, margins: Floats, distances: Floats, correct: Bools
    ) -> ExitEvidence:
        """Find out which exits agree; each argument has the shape (n_exits, n)."""
        agrees = np.zeros(correct.shape, dtype=bool)
        agrees[1:] = answers[1:] == answers[:-1]
        return cls(margins, agrees, distances, correct)

    @classmethod
    def from_reports(cls, reports: Sequence[EvaluationReport]) -> ExitEvidence:
        """Take what evaluations of the exits, each on the same images, have found."""
        return cls.from_answers(
            answers=np.array([each.y_pred for each in reports]),
            margins=np.array([each.margin for each in reports]),
            distances=np.array([each.distances for each in reports], dtype=np.float64),
            correct=np.array([each.correct for each in reports]),
        )

    def __len__(self) -> int:
        return int(self.margins.shape[1])

    def take(self, rows: npt.NDArray[np.intp]) -> ExitEvidence:
        """Return what there is of some images."""
        return ExitEvidence(
            self.margins[:, rows], self.agrees[:, rows], self.distances[:, rows], self.correct[:, rows]
        )

    @property
    def n_exits(self) -> int:
        """The number of exits."""
        return int(self.margins.shape[0])


@dataclass(frozen=True)
class ExitPolicy:
    """The rule that lets an image leave.

    At each exit, a logistic regression on how sure it is estimates the risk of leaving: how probable it is
    that the answer here is incorrect and the last exit's would be correct. The image leaves where that is at
    most a threshold, the same at all exits. What leaving may gain, where only the answer here is correct,
    does not count: images whose exits disagree would leave first, and their losses vary most, so that little
    could be promised.

    Attributes
    ----------
    certainty : {"combined", "margin", "agreement", "distance"}
    n_exits : int
    regressions : tuple of tuple of float
        Of each exit but the last, the coefficients. Empty where nothing could be learned: 1 − margin is then
        taken for the risk.
    threshold : float or None
        In [0, 1]; None: nothing leaves before the last exit.
    """

    certainty: str
    n_exits: int
    regressions: tuple[tuple[float, ...], ...] = ()
    threshold: float | None = None

    @classmethod
    def learn(cls, evidence: ExitEvidence, certainty: str) -> ExitPolicy:
        """Learn the risk from images whose answers are known, other than those it is tested on."""
        policy = cls(check_choice(certainty, "certainty", CERTAINTIES), evidence.n_exits)
        found = []
        for place in range(evidence.n_exits - 1):
            features = policy._features(
                evidence.margins[place], evidence.agrees[place], evidence.distances[place]
            )
            found.append(_regression(features, evidence.correct[-1] & ~evidence.correct[place]))
        return replace(policy, regressions=tuple(found))

    def risk(self, place: int, margins: Floats, agrees: Bools, distances: Floats) -> Floats:
        """Return how probable it is that only the last exit is right, in [0, 1], shape (n,)."""
        if not self.regressions:
            return 1.0 - margins
        constant, *slopes = self.regressions[place]
        found: Floats = expit(constant + self._features(margins, agrees, distances) @ np.array(slopes))
        return found

    def leaves(self, place: int, margins: Floats, agrees: Bools, distances: Floats) -> Bools:
        """Tell which images leave at an exit, shape (n,)."""
        if place == self.n_exits - 1:
            return np.ones(len(margins), dtype=bool)
        if self.threshold is None:
            return np.zeros(len(margins), dtype=bool)
        found: Bools = self.risk(place, margins, agrees, distances) <= self.threshold
        return found

    def exits(self, evidence: ExitEvidence) -> npt.NDArray[np.intp]:
        """Return the exit at which each image leaves, shape (n,)."""
        found = np.full(len(evidence), evidence.n_exits - 1, dtype=np.intp)
        for place in range(evidence.n_exits - 2, -1, -1):
            said = (evidence.margins[place], evidence.agrees[place], evidence.distances[place])
            found[self.leaves(place, *said)] = place
        return found

    def at(self, threshold: float | None) -> ExitPolicy:
        """Return the same rule with a threshold."""
        return replace(self, threshold=threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return {**vars(self), "regressions": [list(each) for each in self.regressions]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExitPolicy:
        """Read what `to_dict` returned.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is anything else.
        """
        found = tuple(tuple(map(float, each)) for each in values["regressions"])
        if values["certainty"] not in CERTAINTIES:
            raise ValueError(f"there is no certainty {values['certainty']!r:.50}")
        threshold = None if values["threshold"] is None else float(values["threshold"])
        policy = cls(values["certainty"], int(values["n_exits"]), found, threshold)
        if found and len(found) != policy.n_exits - 1:
            raise ValueError("there are not as many regressions as exits")
        width = policy._features(np.ones(1), np.ones(1, dtype=bool), np.ones(1)).shape[1] + 1
        if any(len(each) != width for each in found):
            raise ValueError("a regression has another number of coefficients")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError("the threshold is no probability")
        if not np.isfinite([*(number for each in found for number in each)]).all():
            raise ValueError("a number is not finite")
        return policy

    def _features(self, margins: Floats, agrees: Bools, distances: Floats) -> Floats:
        """Return what the regressions read, shape (n, n_features)."""
        ahead = logit(np.clip(margins, LEAST_MARGIN, 1 - LEAST_MARGIN))
        same = agrees.astype(np.float64)
        far = np.log(np.maximum(np.nan_to_num(distances, nan=1.0, posinf=1.0), LEAST_DISTANCE))
        columns = {
            "margin": [ahead, ahead**2],
            "agreement": [same],
            "distance": [far, far**2],
            "combined": [ahead, ahead**2, same, same * ahead],
        }
        return np.stack(columns[self.certainty], axis=1)


def _regression(features: Floats, happened: Bools) -> tuple[float, ...]:
    """Return coefficients, the constant first; that alone where it always happened, or never."""
    if happened.all() or not happened.any():
        share = (happened.sum() + 0.5) / (len(happened) + 1)
        return (float(logit(share)), *[0.0] * features.shape[1])
    center, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1.0
    learned = LogisticRegression(C=STRENGTH, max_iter=1000, solver="newton-cg").fit(
        (features - center) / scale, happened
    )
    slopes = learned.coef_[0] / scale
    return (float(learned.intercept_[0] - slopes @ center), *map(float, slopes))
