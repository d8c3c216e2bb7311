"""Calibration of probabilities on held-out images, repeated when the store changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_choice
from clipretrieval._util.repr import short_repr
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.decision import Posterior
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
FEW = 50
"""Images: with fewer, neither the map nor the error after it is reliable."""
NOISE = 0.5
"""Over √n: a difference of the errors of n images that is not chance, about half the error's own bias."""


@dataclass(frozen=True)
class CalibrationReport:
    """The calibration error on the images given to `calibrate`, before and after.

    Attributes
    ----------
    method : {"temperature", "isotonic"}
    n : int
        Images that are used: those that were stored since are not.
    temperature : float or None
        What log probabilities are divided by; above 1, the head was overconfident (votes: after smoothing).
        None for another method.
    ece_before, ece_after : float
        The expected calibration error, in [0, 1]; see `CalibrationCurve.ece`. The one after is from a
        five-fold cross-validation: each image by the calibration that was fit on the other folds.
    smoothing : float or None
        The share of the votes that is spread over all classes before; 0 for a head with probabilities of its
        own. None for another method.
    """

    method: str
    n: int
    temperature: float | None
    ece_before: float
    ece_after: float
    smoothing: float | None = None

    def __repr__(self) -> str:
        return short_repr(self, **vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return dict(vars(self))

    def warn(self) -> None:
        """Say where the images are few, or probabilities have become worse."""
        if self.n < FEW:
            warn_caller(
                f"calibrated on {self.n} images, which are few: the calibration depends on which they are. "
                f"Pass {FEW} at least, better a few hundred"
            )
        if self.ece_after - self.ece_before > NOISE / self.n**0.5:
            other = "isotonic" if self.method == "temperature" else "temperature"
            warn_caller(
                f"calibrating made the expected calibration error worse, from {self.ece_before:.4f} to "
                f"{self.ece_after:.4f}, on the {self.n} images given. Try method={other!r}, more images, or, "
                "where votes decide, a larger k; or fit anew without calibrate"
            )


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
        ece_before, ece_after = [
            calibration_curve(np.clip(share, 0, 1), answers == codes).ece
            for answers, share in (before, after)
        ]
        if not isinstance(fitted, TemperatureMap):
            return CalibrationReport(self.method, len(codes), None, ece_before, ece_after)
        return CalibrationReport(
            self.method, len(codes), fitted.temperature, ece_before, ece_after, fitted.smoothing
        )

    def _learn(self, basis: Basis, *, measured: bool = False) -> tuple[ProbabilityMap, Any, Any, Any]:
        """Return the map, and the answers and their shares before and, where wanted, after; the truth."""
        rows = basis.counted(self.images)
        if len(rows) < LEAST:
            if len(rows) == len(self.images):
                raise InvalidInputError(
                    f"{len(rows)} image is too few to calibrate with: at least {LEAST} are needed, better a "
                    "few hundred"
                )
            raise InvalidInputError(
                f"only {len(rows)} of the {len(self.images)} images given to calibrate can be used: the "
                f"others are stored by now, or their class was forgotten. At least {LEAST} are needed; call "
                "calibrate with others"
            )
        images = self.images.take(rows.tolist())
        numbers = basis.index.number_classes()
        decisions = [
            decision for _, _, decision in basis.decide(images, numbers)
        ]  # no class comes after these
        codes = numbers.of_labels(images.labels)
        votes = not isinstance(decisions[0], Posterior)
        read = class_log_probabilities if self.method == "temperature" else class_probabilities
        values = np.concatenate([read(each, numbers) for each in decisions])
        classes = [label for label, _ in sorted(basis.index.classes.codes.items(), key=lambda item: item[1])]

        def learn(part: Any) -> ProbabilityMap:
            if self.method == "temperature":
                return TemperatureMap.learn(values[part], codes[part], votes=votes)
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
