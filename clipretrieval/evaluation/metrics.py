"""Numbers computed from arrays, and nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from clipretrieval._util.checks import check_int, check_number
from clipretrieval._util.foreign import as_array
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.confusion import Confusion
from clipretrieval.types import AnyArray

__all__ = [
    "DistanceSummary",
    "McNemar",
    "class_table",
    "confused_pairs",
    "macro_averages",
    "mcnemar_exact",
    "summarise_distances",
    "wilson_interval",
]


@dataclass(frozen=True)
class DistanceSummary:
    """How some distances are spread.

    Attributes
    ----------
    count : int
        Of the finite ones, which all else is computed from.
    mean, std, min, q25, median, q75, max : float
        NaN where there are none. `std` is that of the population (divided by the count).
    """

    count: int
    mean: float
    std: float
    min: float
    q25: float
    median: float
    q75: float
    max: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with None for NaN."""
        return {key: None if math.isnan(value) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two classifiers on the same images.

    Attributes
    ----------
    gained : int
        Images that the first has right and the second wrong.
    lost : int
        Images that the first has wrong and the second right.
    p_value : float
        In [0, 1]: how likely counts at least as unequal are where both are equally often right; 0 where
        that is less than a float can hold.
    """

    gained: int
    lost: int
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.

    Parameters
    ----------
    successes, trials : int
    confidence : float
        In (0, 1).

    Returns
    -------
    (low, high) : tuple of float
        In [0, 1].

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927), pages 209-212; computed by ``scipy.stats.binomtest``.
    """
    trials = check_int(trials, "trials")
    successes = check_int(successes, "successes", least=0, most=trials)
    confidence = check_number(confidence, "confidence", above=0)
    if confidence >= 1:
        raise InvalidInputError(f"confidence must lie between 0 and 1; got {confidence}")
    found = binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="wilson")
    return float(found.low), float(found.high)


def summarise_distances(distances: npt.NDArray[np.floating[Any]]) -> DistanceSummary:
    """Summarize distances, shape (n,), n ≥ 0; infinite ones, where there was no neighbor, are left out."""
    values = np.asarray(as_array(distances, "distances"), dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return DistanceSummary(0, *[math.nan] * 7)
    quartiles = np.percentile(values, [0, 25, 50, 75, 100])
    return DistanceSummary(len(values), float(values.mean()), float(values.std()), *map(float, quartiles))


def class_table(y_true: AnyArray, y_pred: AnyArray, classes: AnyArray) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and support of each class.

    Parameters
    ----------
    y_true, y_pred : ndarray, shape (n,)
    classes : ndarray, shape (n_classes,)

    Returns
    -------
    list of dict
        ``class``, ``precision``, ``recall``, ``f1`` in [0, 1], ``support`` (true members) and
        ``predicted``. A ratio with nothing below the line is 0, as scikit-learn has it.
    """
    counts = Confusion.of(y_true, y_pred, classes)
    support, predicted, correct = counts.support, counts.predicted, counts.correct
    precision, recall = _ratio(correct, predicted), _ratio(correct, support)
    f1 = _ratio(2 * correct, support + predicted)
    columns = [column.tolist() for column in (precision, recall, f1, support, predicted)]
    names = ("class", "precision", "recall", "f1", "support", "predicted")
    return [dict(zip(names, row, strict=True)) for row in zip(classes.tolist(), *columns, strict=True)]


def macro_averages(per_class: list[dict[str, Any]]) -> dict[str, float]:
    """Average over the classes, each counting the same however many images it has.

    Parameters
    ----------
    per_class : list of dict
        From `class_table`, with at least one image.

    Returns
    -------
    dict
        ``balanced_accuracy``: the mean recall of the classes that have images, as
        ``sklearn.metrics.balanced_accuracy_score`` has it. ``macro_f1``: the mean F1 of the classes that have
        images or were answered, as ``sklearn.metrics.f1_score`` has it. Both in [0, 1].
    """
    met = [row for row in per_class if row["support"] or row["predicted"]]
    present = [row for row in met if row["support"]]
    return {
        "balanced_accuracy": sum(row["recall"] for row in present) / len(present),
        "macro_f1": sum(row["f1"] for row in met) / len(met),
    }


def confused_pairs(matrix: AnyArray, classes: AnyArray, most: int | None = None) -> list[dict[str, Any]]:
    """Return the pairs of a true class and a wrong answer, those that occurred most often first.

    Parameters
    ----------
    matrix : ndarray of int, shape (n_classes, n_classes)
        Counts: true classes in rows, answers in columns.
    classes : ndarray, shape (n_classes,)
    most : int, optional
        How many pairs; all that occurred when left out.

    Returns
    -------
    list of dict
        ``true``, ``answer``, ``count`` and ``share`` (of the true class's images, in (0, 1]). Pairs that
        occurred equally often are in the order of `classes`.
    """
    return Confusion.of_matrix(np.asarray(matrix)).pairs(classes, most)


def mcnemar_exact(first: AnyArray, second: AnyArray) -> McNemar:
    """Compare two classifiers by the images on which only one of them is right.

    Two-sided: of those images, each is as likely to be the one's as the other's under the null
    hypothesis, so `gained` follows the binomial distribution with a probability of a half.

    Parameters
    ----------
    first, second : ndarray of bool, shape (n,)
        Whether each image was answered rightly.

    Returns
    -------
    McNemar
        With a p-value of 1 where they are never right apart.

    Raises
    ------
    InvalidInputError
        If the shapes differ, or there are no images.

    References
    ----------
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), pages 153-157; the exact form by ``scipy.stats.binomtest``.
    """
    one, other = (np.asarray(as_array(each, "correctness"), dtype=bool) for each in (first, second))
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise InvalidInputError(
            "McNemar's test needs two equally long rows of right and wrong answers to the same images; got "
            f"the shapes {one.shape} and {other.shape}"
        )
    gained, lost = int((one & ~other).sum()), int((~one & other).sum())
    p_value = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return McNemar(gained, lost, p_value)


def _ratio(above: npt.NDArray[np.int64], below: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Divide counts; 0 where there is nothing below the line."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
