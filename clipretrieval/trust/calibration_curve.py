"""Whether answers are correct as often as their share of the votes, or their probability, says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import calibration as sklearn_calibration

from clipretrieval._util.checks import check_int
from clipretrieval._util.foreign import as_array
from clipretrieval._util.repr import short_repr
from clipretrieval.errors import InvalidInputError

__all__ = ["CalibrationCurve", "calibration_curve"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """Accuracy over confidence, in bins of the same width that hold at least one answer.

    Attributes
    ----------
    low, high : ndarray of float64, shape (n_bins,)
        A bin holds the confidences in (low, high]; the first one holds 0 too.
    count : ndarray of int64, shape (n_bins,)
    confidence, accuracy : ndarray of float64, shape (n_bins,)
        Means within the bin, in [0, 1].
    """

    low: Floats
    high: Floats
    count: npt.NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    def __repr__(self) -> str:
        return short_repr(
            self, bins=len(self.count), answers=int(self.count.sum()), ece=self.ece, mce=self.mce
        )

    @property
    def ece(self) -> float:
        """The expected calibration error, in [0, 1]: ``Σ count / n · |accuracy − confidence|`` [1]_.

        References
        ----------
        .. [1] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML
           (2017), equation 3.
        """
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))

    @property
    def mce(self) -> float:
        """The maximum calibration error, in [0, 1]: the largest gap of any bin."""
        return float(np.abs(self.accuracy - self.confidence).max())

    def rows(self) -> list[dict[str, Any]]:
        """Return a dict for each bin: ``low``, ``high``, ``count``, ``confidence``, ``accuracy``."""
        names = ("low", "high", "count", "confidence", "accuracy")
        columns = [getattr(self, name).tolist() for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def calibration_curve(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, n_bins: int = 10
) -> CalibrationCurve:
    """Compare how sure the answers are with how often they are right.

    Parameters
    ----------
    confidence : array-like, shape (n,)
        Of each answer, in [0, 1]; n ≥ 1.
    correct : array-like of bool, shape (n,)
    n_bins : int
        Of the same width over [0, 1].

    Raises
    ------
    InvalidInputError
    """
    shares = np.asarray(as_array(confidence, "confidence"), dtype=np.float64)
    right = np.asarray(as_array(correct, "correct"), dtype=np.bool_)
    if shares.ndim != 1 or shares.shape != right.shape or len(shares) == 0:
        raise InvalidInputError(
            "confidences and correctness must be of the same shape (n,), with n at least 1; got "
            f"{shares.shape} and {right.shape}"
        )
    if not ((shares >= 0) & (shares <= 1)).all():
        raise InvalidInputError("confidences must lie in [0, 1]; pass shares of the votes or probabilities")
    n_bins = check_int(n_bins, "n_bins", most=100_000)
    accuracy, mean = sklearn_calibration.calibration_curve(
        right.astype(int), shares, pos_label=1, n_bins=n_bins, strategy="uniform"
    )
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    count = np.bincount(np.searchsorted(edges[1:-1], shares), minlength=n_bins)
    filled = np.flatnonzero(count)
    return CalibrationCurve(
        edges[filled],
        edges[filled + 1],
        count[filled].astype(np.int64),
        np.asarray(mean),
        np.asarray(accuracy),
    )
