"""Numbers computed from arrays, and nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from clipretrieval.errors import InvalidInputError
from clipretrieval.types import AnyArray

__all__ = ["DistanceSummary", "class_table", "summarise_distances", "wilson_interval"]


@dataclass(frozen=True)
class DistanceSummary:
    """How some distances are spread.

    Attributes
    ----------
    count : int
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
    if trials < 1 or not 0 <= successes <= trials:
        raise InvalidInputError(
            f"an interval needs 0 <= successes <= trials and at least one trial; got {successes} of {trials}"
        )
    found = binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="wilson")
    return float(found.low), float(found.high)


def summarise_distances(distances: npt.NDArray[np.floating[Any]]) -> DistanceSummary:
    """Summarise distances, shape (n,), n ≥ 0."""
    if len(distances) == 0:
        return DistanceSummary(0, *[math.nan] * 7)
    values = np.asarray(distances, dtype=np.float64)
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
    precision, recall, f1, support = precision_recall_fscore_support(
        y_true, y_pred, labels=classes, zero_division=0
    )
    predicted = [int((y_pred == name).sum()) for name in classes]
    return [
        {
            "class": name,
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
            "predicted": predicted[i],
        }
        for i, name in enumerate(classes.tolist())
    ]
