"""How sure an answer is: by its share, by its lead over the second class, or by its distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_choice

__all__ = ["MEASURES", "check_measure", "measure_text", "share_and_margin"]

MEASURES = ("share", "margin", "distance")
"""The measures of confidence: the share of the votes or the probability, its lead, the distance."""

Floats = npt.NDArray[np.float64]


def check_measure(by: Any) -> str:
    """Return the name of a measure of confidence.

    Raises
    ------
    InvalidInputError
        If it is none of `MEASURES`.
    """
    return check_choice(by, "by", MEASURES)


def share_and_margin(scores: Floats, codes: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return the answered class's share of the votes, and how far it is ahead of the second class's.

    Parameters
    ----------
    scores : ndarray of float64, shape (n, n_classes)
        Not negative, with a positive sum in each row.
    codes : ndarray of int64, shape (n,)
        The answered classes.

    Returns
    -------
    share, margin : ndarray of float64, shape (n,)
        In [0, 1]. Where one class has all the votes, both are 1.
    """
    rows, total = np.arange(len(codes)), scores.sum(axis=1)
    others = scores.copy()
    others[rows, codes] = 0
    answered = scores[rows, codes]
    # Subtracted before the division, so that margins of whole votes are equal where their votes are.
    margin = np.clip((answered - others.max(axis=1)) / total, 0.0, 1.0)
    return np.minimum(answered / total, 1.0), margin


def measure_text(by: str, value: float, *, votes: bool = True) -> str:
    """Write the value of a measure with what it is, such as ``80.0% of the votes`` or ``80.0% probable``."""
    if by == "share":
        return f"{value:.1%} of the votes" if votes else f"{value:.1%} probable"
    if by == "margin":
        return f"{value:.1%} ahead of the second class"
    return f"distance {value:.4g}"
