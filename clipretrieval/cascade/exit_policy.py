"""When an image leaves: what it is expected to lose by that, against the arithmetic that it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
PRICES = np.concatenate([-np.geomspace(1.0, 1e-3, 61), [0.0], np.geomspace(1e-3, 1.0, 121)])
"""What the whole of the last exit's arithmetic may be worth, as accuracy, in the order of their risk."""
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

    At each exit, two logistic regressions on how sure it is estimate how probable it is that the answer is
    correct here, and that the last exit's would be. The image leaves where the difference, what is lost by
    leaving, is at most the price of the arithmetic that is saved. So one number, the price, sets all exits'
    thresholds; as the last image to leave costs the same at each exit, no other thresholds have the same
    expected accuracy for less.

    Attributes
    ----------
    certainty : {"combined", "margin", "agreement", "distance"}
    saved : tuple of float
        The share of the last exit's arithmetic that leaving saves, in [0, 1), of each exit.
    here, last : tuple of tuple of float
        Of each exit but the last, the regressions' coefficients. Empty where nothing could be learned: an
        image then leaves where 1 − margin is at most the price.
    price : float or None
        None: nothing leaves before the last exit.
    """

    certainty: str
    saved: tuple[float, ...]
    here: tuple[tuple[float, ...], ...] = ()
    last: tuple[tuple[float, ...], ...] = ()
    price: float | None = None

    @classmethod
    def learn(cls, evidence: ExitEvidence, saved: Sequence[float], certainty: str) -> ExitPolicy:
        """Learn what leaving loses from images whose answers are known, other than those it is tested on."""
        policy = cls(check_choice(certainty, "certainty", CERTAINTIES), tuple(saved))
        here, last = [], []
        for place in range(evidence.n_exits - 1):
            features = policy._features(
                place, evidence.margins[place], evidence.agrees[place], evidence.distances[place]
            )
            here.append(_regression(features, evidence.correct[place]))
            last.append(_regression(features, evidence.correct[-1]))
        return cls(policy.certainty, policy.saved, tuple(here), tuple(last))

    def lost(self, place: int, margins: Floats, agrees: Bools, distances: Floats) -> Floats:
        """Return the accuracy that is expected to be lost by leaving at an exit, in [-1, 1], shape (n,)."""
        if not self.here:
            return 1.0 - margins
        features = self._features(place, margins, agrees, distances)
        found: Floats = _probability(self.last[place], features) - _probability(self.here[place], features)
        return found

    def leaves(self, place: int, margins: Floats, agrees: Bools, distances: Floats) -> Bools:
        """Tell which images leave at an exit, shape (n,)."""
        if place == len(self.saved) - 1:
            return np.ones(len(margins), dtype=bool)
        if self.price is None:
            return np.zeros(len(margins), dtype=bool)
        found: Bools = self.lost(place, margins, agrees, distances) <= self.worth(place)
        return found

    def worth(self, place: int) -> float:
        """Return what leaving at an exit may lose, in [-1, 1]; minus infinity where nothing leaves."""
        if self.price is None:
            return -np.inf
        return self.price * (self.saved[place] if self.here else 1.0)

    def exits(self, evidence: ExitEvidence) -> npt.NDArray[np.intp]:
        """Return the exit at which each image leaves, shape (n,)."""
        found = np.full(len(evidence), evidence.n_exits - 1, dtype=np.intp)
        for place in range(evidence.n_exits - 2, -1, -1):
            said = (evidence.margins[place], evidence.agrees[place], evidence.distances[place])
            found[self.leaves(place, *said)] = place
        return found

    def at(self, price: float | None) -> ExitPolicy:
        """Return the same rule at a price."""
        return ExitPolicy(self.certainty, self.saved, self.here, self.last, price)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return {
            "certainty": self.certainty,
            "saved": list(self.saved),
            "here": [list(each) for each in self.here],
            "last": [list(each) for each in self.last],
            "price": self.price,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExitPolicy:
        """Read what `to_dict` returned.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is anything else.
        """
        saved = tuple(map(float, values["saved"]))
        here, last = (tuple(tuple(map(float, each)) for each in values[name]) for name in ("here", "last"))
        if values["certainty"] not in CERTAINTIES:
            raise ValueError(f"there is no certainty {values['certainty']!r:.50}")
        policy = cls(values["certainty"], saved, here, last)
        width = policy._features(1, np.ones(1), np.ones(1, dtype=bool), np.ones(1)).shape[1] + 1
        if here and {len(here), len(last)} != {len(saved) - 1}:
            raise ValueError("there are not as many regressions as exits")
        if any(len(each) != width for each in (*here, *last)):
            raise ValueError("a regression has another number of coefficients")
        price = values["price"]
        numbers = np.array([*saved, *(x for each in (*here, *last) for x in each), price or 0.0])
        if not np.isfinite(numbers).all():
            raise ValueError("a number is not finite")
        return policy.at(None if price is None else float(price))

    def _features(self, place: int, margins: Floats, agrees: Bools, distances: Floats) -> Floats:
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


def _regression(features: Floats, correct: Bools) -> tuple[float, ...]:
    """Return coefficients, the constant first; that alone where all are correct, or none."""
    if correct.all() or not correct.any():
        share = (correct.sum() + 0.5) / (len(correct) + 1)
        return (float(logit(share)), *[0.0] * features.shape[1])
    center, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1.0
    learned = LogisticRegression(C=STRENGTH, max_iter=1000, solver="newton-cg").fit(
        (features - center) / scale, correct
    )
    slopes = learned.coef_[0] / scale
    return (float(learned.intercept_[0] - slopes @ center), *map(float, slopes))


def _probability(coefficients: Sequence[float], features: Floats) -> Floats:
    found: Floats = expit(coefficients[0] + features @ np.array(coefficients[1:]))
    return found
