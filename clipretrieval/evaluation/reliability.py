"""How well a measure of confidence tells correct answers from incorrect ones.

There are three measures. The *share* is the answered class's part of the votes, or its probability, and the
*margin* how far that is ahead of the second class's: the greater, the surer. The *distance* to the nearest
neighbor is the lower, the surer, under every metric; where there was no neighbor it is ``+inf``, the least
sure of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from clipretrieval._util.checks import check_int
from clipretrieval._util.foreign import as_array
from clipretrieval._util.repr import short_repr
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.metrics import wilson_interval
from clipretrieval.heads.confidence import MEASURES, check_measure

__all__ = [
    "DistanceHistogram",
    "Reliability",
    "RiskCoverage",
    "accuracy_by_decile",
    "best_measure",
    "distance_histogram",
    "error_auroc",
    "risk_coverage",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DECILES = 10

CHANCE = 0.5
"""The `error_auroc` of a measure that tells nothing."""


@dataclass(frozen=True, eq=False)
class DistanceHistogram:
    """Counts of correct and of incorrect answers over the distance, or another measure.

    Attributes
    ----------
    edges : ndarray of float64, shape (n_bins + 1,)
        Ascending. A bin holds its lower edge and not its upper one; the last one holds both.
    right, wrong : ndarray of int64, shape (n_bins,)
    """

    edges: Floats
    right: Ints
    wrong: Ints

    def __repr__(self) -> str:
        low, high = float(self.edges[0]), float(self.edges[-1])
        right, wrong = int(self.right.sum()), int(self.wrong.sum())
        return short_repr(self, bins=len(self.right), low=low, high=high, right=right, wrong=wrong)


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What is kept, and how much of it is incorrect, when the answers that are less sure are withheld.

    One point for each distinct value of the measure: answers of the same value are kept or withheld together.

    Attributes
    ----------
    thresholds : ndarray of float64, shape (n_points,)
        The surest first. Distances ascend: answers at this distance or nearer are kept, and the last may be
        ``+inf``. Shares and margins descend: answers of this share or margin or more are kept.
    kept : ndarray of int64, shape (n_points,)
        How many these are; the last is the number of all answers.
    errors : ndarray of int64, shape (n_points,)
        How many of those kept are incorrect.
    by : {"distance", "share", "margin"}
        The measure.
    """

    thresholds: Floats
    kept: Ints
    errors: Ints
    by: str = "distance"

    def __repr__(self) -> str:
        return short_repr(self, by=self.by, points=len(self.kept), answers=int(self.kept[-1]), area=self.area)

    @property
    def coverage(self) -> Floats:
        """Share of the answers that are kept, in (0, 1]."""
        shares: Floats = self.kept / self.kept[-1]
        return shares

    @property
    def risk(self) -> Floats:
        """Share of incorrect answers among those kept, in [0, 1]."""
        shares: Floats = self.errors / self.kept
        return shares

    @cached_property
    def area(self) -> float:
        """The area under the curve, in [0, 1]; lower is better.

        The mean, over i = 1 … n, of the risk when the i surest answers are kept [1]_. Answers of the same
        value have no order: the mean over all their orders is taken.

        References
        ----------
        .. [1] Y. Geifman, G. Uziel, R. El-Yaniv, "Bias-reduced uncertainty estimation for deep neural
           classifiers", ICLR (2019), section 2.
        """
        before_kept = np.concatenate([[0], self.kept[:-1]])
        before_wrong = np.concatenate([[0], self.errors[:-1]])
        sizes = self.kept - before_kept
        # Of the first j of a group of ties, j × (errors of the group) / (its size) are expected to be wrong.
        rate = np.repeat((self.errors - before_wrong) / sizes, sizes)
        place = np.arange(1, self.kept[-1] + 1)
        wrong = np.repeat(before_wrong, sizes) + (place - np.repeat(before_kept, sizes)) * rate
        return float((wrong / place).mean())

    @property
    def best_area(self) -> float:
        """The least area that any order of these answers has: all correct ones before all incorrect ones."""
        n, wrong = int(self.kept[-1]), int(self.errors[-1])
        place = np.arange(1, n + 1)
        return float((np.maximum(place - (n - wrong), 0) / place).mean())

    def thinned(self, most: int) -> RiskCoverage:
        """Keep at most so many points, spread evenly over the coverage; each one stays exact.

        Parameters
        ----------
        most : int
            At least 2. The first and the last point are always among them.
        """
        if len(self.kept) <= most:
            return self
        wanted = np.linspace(self.kept[0], self.kept[-1], most)
        places = np.unique(np.minimum(np.searchsorted(self.kept, wanted), len(self.kept) - 1))
        return RiskCoverage(self.thresholds[places], self.kept[places], self.errors[places], self.by)


@dataclass(frozen=True, eq=False)
class Reliability:
    """How well one measure of confidence tells correct answers from incorrect ones.

    Attributes
    ----------
    by : {"share", "margin", "distance"}
        The measure.
    values : ndarray of float64, shape (n,)
        Of each answer.
    correct : ndarray of bool, shape (n,)
    """

    by: str
    values: Floats
    correct: npt.NDArray[np.bool_]

    def __repr__(self) -> str:
        return short_repr(self, by=self.by, answers=len(self.values), error_auroc=self.error_auroc)

    @cached_property
    def error_auroc(self) -> float:
        """How well the measure detects errors; see `error_auroc`."""
        return error_auroc(self.values, self.correct, by=self.by)

    @cached_property
    def risk_coverage(self) -> RiskCoverage:
        """What is kept, and how much of it is incorrect, at each threshold; see `risk_coverage`."""
        return risk_coverage(self.values, self.correct, by=self.by)

    @cached_property
    def deciles(self) -> list[dict[str, Any]]:
        """Accuracy from the surest tenth to the least sure; see `accuracy_by_decile`."""
        return accuracy_by_decile(self.values, self.correct, by=self.by)

    @property
    def constant(self) -> bool:
        """Whether all answers have the same value, so that the measure tells nothing."""
        return len(self.risk_coverage.kept) == 1


def best_measure(found: Iterable[Reliability]) -> str | None:
    """Return the measure with the highest `error_auroc`, or None where none is better than chance.

    Parameters
    ----------
    found : iterable of Reliability
        Of the same answers. Of equal ones the first in the order share, margin, distance is taken.

    Returns
    -------
    {"share", "margin", "distance"} or None
        None too where all answers are correct, or all incorrect. The choice describes these answers: on
        others another measure may be better.
    """
    ranked = sorted(
        (each for each in found if each.error_auroc > CHANCE),  # False for NaN
        key=lambda each: (-each.error_auroc, MEASURES.index(each.by)),
    )
    return ranked[0].by if ranked else None


def distance_histogram(
    distances: npt.ArrayLike,
    correct: npt.ArrayLike,
    bins: int = 40,
    span: tuple[float, float] | None = None,
) -> DistanceHistogram:
    """Count correct and incorrect answers over the distance, in bins of the same width.

    Parameters
    ----------
    distances : array-like, shape (n,)
        Infinite ones are left out.
    correct : array-like of bool, shape (n,)
    bins : int
        At least 1. There is one bin, with the distances in its middle, where all of them are equal.
    span : (float, float), optional
        What the bins reach from and to: all distances lie within. From the least to the greatest of them
        where it is left out.

    Raises
    ------
    InvalidInputError
    """
    values, right = _checked_values(distances, correct)
    bins = check_int(bins, "bins", most=100_000)
    finite = np.isfinite(values)
    values, right = values[finite], right[finite]
    if len(values) == 0:
        return DistanceHistogram(np.array([0.0, 1.0]), np.zeros(1, np.int64), np.zeros(1, np.int64))
    low, high = span or (float(values.min()), float(values.max()))
    edges = np.linspace(low, high, bins + 1)
    if span:
        edges = np.round(edges, 12)  # so that a share of 3/5 is the edge that is meant, and not below it
    if not (np.diff(edges) > 0).all():
        # The bins would be narrower than the numbers are fine: one, of a width that can be seen, has to do.
        half = max(0.5, abs(low) * 1e-6)
        edges = np.array([low - half, high + half])
    counts = [np.histogram(values[mask], bins=edges)[0].astype(np.int64) for mask in (right, ~right)]
    return DistanceHistogram(edges, *counts)


def error_auroc(values: npt.ArrayLike, correct: npt.ArrayLike, *, by: str = "distance") -> float:
    """Return how well a measure of confidence detects errors: the area under its ROC curve.

    Parameters
    ----------
    values : array-like, shape (n,)
        Distances (``+inf`` where there was no neighbor), shares or margins.
    correct : array-like of bool, shape (n,)
    by : {"distance", "share", "margin"}
        What the values are: small distances are sure, and large shares and margins.

    Returns
    -------
    float
        In [0, 1]: the probability that an incorrect answer is less sure than a correct one, ties counting one
        half. 0.5 is chance, which a measure that is the same for all answers reaches exactly. NaN where all
        answers are correct, or all incorrect.

    Raises
    ------
    InvalidInputError

    References
    ----------
    D. Hendrycks, K. Gimpel, "A baseline for detecting misclassified and out-of-distribution examples in
    neural networks", ICLR (2017); computed by ``sklearn.metrics.roc_auc_score``.
    """
    doubts, right = _doubts(values, correct, by)
    if right.all() or not right.any():
        return math.nan
    # The area depends on the order alone, and scikit-learn takes no infinite scores.
    return float(roc_auc_score(~right, rankdata(doubts, method="dense")))


def risk_coverage(values: npt.ArrayLike, correct: npt.ArrayLike, *, by: str = "distance") -> RiskCoverage:
    """Compute the risk-coverage curve of withholding the answers that are less sure than a threshold.

    Parameters
    ----------
    values : array-like, shape (n,)
        n ≥ 1; distances (``+inf`` where there was no neighbor), shares or margins.
    correct : array-like of bool, shape (n,)
    by : {"distance", "share", "margin"}
        What the values are: small distances are sure, and large shares and margins.

    Raises
    ------
    InvalidInputError

    References
    ----------
    R. El-Yaniv, Y. Wiener, "On the foundations of noise-free selective classification", Journal of Machine
    Learning Research 11 (2010), pages 1605-1641.
    """
    doubts, right = _doubts(values, correct, by)
    order = np.argsort(doubts, kind="stable")
    ordered, wrong = doubts[order], np.cumsum(~right[order])
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    thresholds = np.asarray(values, dtype=np.float64)[order][last]
    return RiskCoverage(thresholds, (last + 1).astype(np.int64), wrong[last].astype(np.int64), by)


def accuracy_by_decile(
    values: npt.ArrayLike, correct: npt.ArrayLike, *, by: str = "distance"
) -> list[dict[str, Any]]:
    """Return the accuracy of each tenth of the answers, from the surest to the least sure.

    Parameters
    ----------
    values : array-like, shape (n,)
        n ≥ 1; distances (``+inf`` where there was no neighbor), shares or margins.
    correct : array-like of bool, shape (n,)
    by : {"distance", "share", "margin"}
        What the values are: small distances are sure, and large shares and margins.

    Returns
    -------
    list of dict
        ``decile`` (1 … 10), ``min`` and ``max`` (values), ``count``, ``accuracy``, ``low`` and ``high``
        (its 95 % Wilson interval). Decile d ends with the ⌈d·n/10⌉-th surest value, and an answer belongs to
        the first decile that its value is within: equal values stay together, and deciles that get no answer
        are left out.

    Raises
    ------
    InvalidInputError
    """
    doubts, right = _doubts(values, correct, by)
    given, n = doubts if by == "distance" else -doubts, len(doubts)
    ordered = np.sort(doubts)
    # The limit of decile d is the ⌈d·n/10⌉-th surest value.
    limits = ordered[[-(-number * n // DECILES) - 1 for number in range(1, DECILES + 1)]]
    decile = np.searchsorted(limits, doubts)
    rows = []
    for number in range(DECILES):
        inside = decile == number
        count = int(inside.sum())
        if count == 0:
            continue
        hits = int(right[inside].sum())
        low, high = wilson_interval(hits, count)
        rows.append(
            {
                "decile": number + 1,
                "min": float(given[inside].min()),
                "max": float(given[inside].max()),
                "count": count,
                "accuracy": hits / count,
                "low": low,
                "high": high,
            }
        )
    return rows


def _doubts(values: npt.ArrayLike, correct: npt.ArrayLike, by: str) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return values that are the greater, the less sure an answer is, and which answers are correct."""
    check_measure(by)
    found, right = _checked_values(values, correct)
    return (found if by == "distance" else -found), right


def _checked_values(values: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    found = np.asarray(as_array(values, "values"), dtype=np.float64)
    right = np.asarray(as_array(correct, "correct"), dtype=np.bool_)
    if found.ndim != 1 or found.shape != right.shape or len(found) == 0:
        raise InvalidInputError(
            "values and correctness must be of the same shape (n,), with n at least 1; got "
            f"{found.shape} and {right.shape}"
        )
    if np.isnan(found).any():
        raise InvalidInputError("values must not be NaN; where there is no neighbor, pass the distance +inf")
    return found, right
