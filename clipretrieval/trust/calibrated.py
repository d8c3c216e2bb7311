"""Calibration of probabilities on held-out images, repeated when the store changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_choice
from clipretrieval._util.repr import short_repr
from clipretrieval.errors import InvalidInputError
from clipretrieval.trust.basis import Basis, Remembered
from clipretrieval.trust.calibration_images import CalibrationImages
from clipretrieval.trust.conformal import draws
from clipretrieval.trust.probability_maps import (
    METHODS,
    IsotonicMap,
    ProbabilityMap,
    TemperatureMap,
    class_log_probabilities,
    class_probabilities,
)
from clipretrieval.trust.trusted_decision import TrustedDecision

__all__ = ["Calibrated", "CalibrationReport", "check_method"]

Floats = npt.NDArray[np.float64]

FOLDS = 5
LEAST = 2
"""Images: each is measured by what was learned of others."""


@dataclass(frozen=True)
class CalibrationReport:
    """The calibration error on the images given to `calibrate`, before and after.

    Attributes
    ----------
    method : {"temperature", "isotonic"}
    n : int
        Images that are used: those that were stored since are not.
    temperature : float or None
        What log probabilities are divided by; above 1, the head was overconfident. None for another method.
    ece_before, ece_after : float
        The expected calibration error, in [0, 1]; see `CalibrationCurve.ece`. The one after is from a
        five-fold cross-validation: each image by the calibration that was fit on the other folds.
    """

    method: str
    n: int
    temperature: float | None
    ece_before: float
    ece_after: float

    def __repr__(self) -> str:
        return short_repr(self, **vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return dict(vars(self))


@dataclass(eq=False)
class Calibrated:
    """What `calibrate` was given, and the calibration that is fit on it.

    Attributes
    ----------
    images : CalibrationImages
    method : {"temperature", "isotonic"}
    token : str
        Identifies it.
    remembered : Remembered or None
        The map, as it was last fit.
    """

    images: CalibrationImages
    method: str
    token: str
    remembered: Remembered[ProbabilityMap] | None = None

    def map(self, basis: Basis) -> ProbabilityMap:
        """Return the map that calibrates the head's probabilities, for the store as it is now."""
        key, known = basis.key(), self.remembered
        if known is None or not known.key.is_same(key):
            fitted, *_ = self._learn(basis)
            known = self.remembered = Remembered(key, fitted)
        return known.value

    def report(self, basis: Basis) -> CalibrationReport:
        """Measure the calibration error before and after."""
        from clipretrieval.trust.calibration_curve import calibration_curve

        key = basis.key()
        fitted, before, after, codes = self._learn(basis, measured=True)
        self.remembered = Remembered(key, fitted)
        errors = [
            calibration_curve(np.clip(share, 0, 1), answers == codes).ece
            for answers, share in (before, after)
        ]
        temperature = fitted.temperature if isinstance(fitted, TemperatureMap) else None
        return CalibrationReport(self.method, len(codes), temperature, *errors)

    def _learn(self, basis: Basis, *, measured: bool = False) -> tuple[ProbabilityMap, Any, Any, Any]:
        """Return the map, and the answers and their shares before and, where wanted, after; the truth."""
        rows = basis.counted(self.images)
        if len(rows) < LEAST:
            raise InvalidInputError(
                f"{len(rows)} of the {len(self.images)} images given to calibrate can be used: the others "
                f"are stored by now, or their class was forgotten. At least {LEAST} are needed; calibrate "
                "with others"
            )
        images = self.images.take(rows.tolist())
        numbers = basis.index.number_classes()
        decisions = [
            decision for _, _, decision in basis.decide(images, numbers)
        ]  # no class comes after these
        codes = numbers.of_labels(images.labels)
        read = class_log_probabilities if self.method == "temperature" else class_probabilities
        values = np.concatenate([read(each, numbers) for each in decisions])
        classes = [label for label, _ in sorted(basis.index.classes.codes.items(), key=lambda item: item[1])]

        def learn(part: Any) -> ProbabilityMap:
            if self.method == "temperature":
                return TemperatureMap.learn(values[part], codes[part])
            return IsotonicMap.learn(values[part], codes[part], classes)

        fitted, before, after = learn(np.arange(len(codes))), None, None
        if measured:
            answers = np.concatenate([each.answers for each in decisions])
            before = answers, np.concatenate([each.share_and_margin[0] for each in decisions])
            folds = np.argsort(draws(images.ids, 0, "fold"), kind="stable").argsort() % FOLDS
            after = answers.copy(), np.zeros(len(codes))
            starts = np.cumsum([0, *(len(each.answers) for each in decisions)])
            for fold in np.unique(folds):
                by_others = learn(folds != fold)
                for start, decision in zip(starts, decisions, strict=False):
                    seen = TrustedDecision(decision, numbers, by_others, None)
                    places = np.flatnonzero(folds[start : start + len(seen.answers)] == fold)
                    after[0][start + places] = seen.answers[places]
                    after[1][start + places] = seen.share_and_margin[0][places]
        return fitted, before, after, codes


def check_method(method: Any) -> str:
    """Return ``"temperature"`` or ``"isotonic"``.

    Raises
    ------
    InvalidInputError
    """
    return check_choice(method, "method", METHODS)
