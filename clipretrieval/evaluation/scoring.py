"""The accuracy with a weight for each image, as scikit-learn's ``score`` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.foreign import as_array
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from clipretrieval.evaluation.report import EvaluationReport

__all__ = ["weighted_accuracy"]


def weighted_accuracy(report: EvaluationReport, sample_weight: Any) -> float:
    """Return the share of right answers, in [0, 1].

    Parameters
    ----------
    report : EvaluationReport
    sample_weight : array-like of shape (n,), optional
        Finite numbers of at least 0, one an image, those that were skipped included.

    Raises
    ------
    InvalidInputError
        If they are anything else.
    """
    from sklearn.metrics import accuracy_score

    if sample_weight is None:
        return float(accuracy_score(report.y_true, report.y_pred))
    count = report.n_test + len(report.skipped)
    try:
        weights = as_array(sample_weight, "sample_weight")
        numeric = weights.dtype.kind in "iuf" and bool((np.isfinite(weights) & (weights >= 0)).all())
    except ValueError:  # rows of different lengths
        numeric = False
    if not numeric or weights.shape != (count,) or not weights.any():
        raise InvalidInputError(
            f"sample_weight must be {count} numbers of at least 0, one for each image, that are not all 0"
        )
    weights = np.delete(weights, [item.index for item in report.skipped])
    return float(accuracy_score(report.y_true, report.y_pred, sample_weight=weights))
