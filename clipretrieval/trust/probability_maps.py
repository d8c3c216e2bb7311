"""Maps from a head's probabilities to calibrated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.decision import Decision, Posterior
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.types import Label

__all__ = [
    "METHODS",
    "IsotonicMap",
    "ProbabilityMap",
    "TemperatureMap",
    "class_log_probabilities",
    "class_probabilities",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

METHODS = ("temperature", "isotonic")
SMOOTHINGS = (0.001, 0.01, 0.05, 0.1, 0.2)
"""Shares of the votes that are spread over all classes, of which the likeliest is chosen: a class without a
vote is not impossible."""
COLDEST, HOTTEST = 0.01, 100.0
"""Temperatures that are compared."""


class ProbabilityMap(Protocol):
    """A calibration that was fit on held-out images."""

    @property
    def changes_answers(self) -> bool:
        """Whether another class may be the most probable one afterwards."""
        ...

    def apply(self, decision: Decision, numbers: ClassNumbers) -> Floats:
        """Return calibrated probabilities, shape (n, n_classes), columns by the classes' numbers."""
        ...


@dataclass(frozen=True)
class TemperatureMap:
    """Temperature scaling [1]_: log probabilities divided by one number, which changes no prediction.

    Shares of the votes are smoothed first (linear interpolation with the uniform distribution [2]_), as their
    zeros have no logarithm: with one that is too small, classes without a vote decide the temperature.

    Attributes
    ----------
    temperature : float
        Above 1: the head was overconfident; of votes, after smoothing.
    smoothing : float
        The share of the votes that is spread over all classes; 0 for a head with log probabilities.

    References
    ----------
    .. [1] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML
       (2017), section 4.2.
    .. [2] F. Jelinek, R. L. Mercer, "Interpolated estimation of Markov source parameters from sparse data",
       Pattern Recognition in Practice (1980).
    """

    temperature: float
    smoothing: float = 0.0

    @property
    def changes_answers(self) -> bool:
        """No: the order of the classes stays."""
        return False

    @classmethod
    def learn(cls, logs: Floats, codes: Ints, *, votes: bool = False) -> TemperatureMap:
        """Find the temperature, and the smoothing of votes, under which true classes are most probable.

        Parameters
        ----------
        logs : ndarray of float64, shape (n, n_classes)
            Log probabilities; see `class_log_probabilities`.
        codes : ndarray of int64, shape (n,)
            The true classes. Images whose class has the probability 0 are ignored.
        votes : bool
            Whether these are shares of the votes, of which some are smoothed.
        """
        if not votes:
            return cls._fit(logs, codes)[1]
        found = [(*cls._fit(_smoothed(logs, each), codes), each) for each in SMOOTHINGS]
        _, fitted, smoothing = min(found, key=lambda item: item[0])
        return cls(fitted.temperature, smoothing)

    @classmethod
    def _fit(cls, logs: Floats, codes: Ints) -> tuple[float, TemperatureMap]:
        """Return the mean negative log-likelihood, and the temperature with which it is lowest."""
        from scipy.optimize import minimize_scalar
        from scipy.special import logsumexp

        rows = np.flatnonzero(np.isfinite(logs[np.arange(len(codes)), codes]))
        if not len(rows):
            return 0.0, cls(1.0)
        logs, true = logs[rows], logs[rows, codes[rows]]

        def loss(log_temperature: float) -> float:
            sharp = np.exp(-log_temperature)
            return float((logsumexp(logs * sharp, axis=1) - true * sharp).mean())

        span = (np.log(COLDEST), np.log(HOTTEST))
        found = minimize_scalar(loss, bounds=span, method="bounded", options={"xatol": 1e-6})
        return float(found.fun), cls(float(np.exp(found.x)))

    def apply(self, decision: Decision, numbers: ClassNumbers) -> Floats:
        """Return calibrated probabilities, shape (n, n_classes)."""
        from scipy.special import softmax

        logs = class_log_probabilities(decision, numbers)
        if self.smoothing:
            logs = _smoothed(logs, self.smoothing)
        found: Floats = softmax(logs / self.temperature, axis=1)
        return found


@dataclass(frozen=True, eq=False)
class IsotonicMap:
    """Isotonic regression of each class against the rest, normalized [1]_.

    Attributes
    ----------
    curves : mapping of (int or str) to (ndarray, ndarray)
        Of classes, as stored: the probabilities before, ascending, and after; straight lines between. A class
        without one keeps its probability.

    References
    ----------
    .. [1] B. Zadrozny, C. Elkan, "Transforming classifier scores into accurate multiclass probability
       estimates", KDD (2002).
    """

    curves: Mapping[Label, tuple[Floats, Floats]]

    @property
    def changes_answers(self) -> bool:
        """Yes: each class has a curve of its own."""
        return True

    @classmethod
    def learn(cls, shares: Floats, codes: Ints, classes: Sequence[Label]) -> IsotonicMap:
        """Fit a curve to each class that has an image.

        Parameters
        ----------
        shares : ndarray of float64, shape (n, n_classes)
        codes : ndarray of int64, shape (n,)
        classes : sequence of (int or str), length n_classes
        """
        from sklearn.isotonic import IsotonicRegression

        curves = {}
        for code in np.unique(codes).tolist():
            fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(shares[:, code], codes == code)
            curves[classes[code]] = (
                np.asarray(fitted.X_thresholds_, dtype=np.float64),
                np.asarray(fitted.y_thresholds_, dtype=np.float64),
            )
        return cls(curves)

    def apply(self, decision: Decision, numbers: ClassNumbers) -> Floats:
        """Return calibrated probabilities, shape (n, n_classes)."""
        shares = class_probabilities(decision, numbers)
        found = shares.copy()
        labels = list(self.curves)
        for label, code in zip(labels, numbers.of_labels(labels).tolist(), strict=True):
            if code >= 0:
                found[:, code] = np.interp(shares[:, code], *self.curves[label])
        total = found.sum(axis=1, keepdims=True)
        return np.where(total > 0, found / np.where(total > 0, total, 1.0), shares)


def class_probabilities(decision: Decision, numbers: ClassNumbers) -> Floats:
    """Return the share of every class, shape (n, n_classes), columns by the classes' numbers."""
    found = np.zeros((len(decision.answers), len(numbers)))
    rows, codes, shares = decision.cells
    found[rows, codes] = shares
    return found


def class_log_probabilities(decision: Decision, numbers: ClassNumbers) -> Floats:
    """Return log probabilities of every class, shape (n, n_classes), columns by the classes' numbers.

    −inf for a class that a head holds to be impossible, or without a vote.
    """
    if isinstance(decision, Posterior):
        from scipy.special import log_softmax

        found = np.full((len(decision.log_scores), len(numbers)), -np.inf)
        found[:, decision.codes] = log_softmax(decision.log_scores, axis=1)
        return found
    with np.errstate(divide="ignore"):
        logs: Floats = np.log(class_probabilities(decision, numbers))
    return logs


def _smoothed(logs: Floats, smoothing: float) -> Floats:
    """Return log probabilities of which a share is spread over all classes."""
    found: Floats = np.logaddexp(np.log1p(-smoothing) + logs, np.log(smoothing / logs.shape[1]))
    return found
