"""Whether two classifiers differ on the same images by more than chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from clipretrieval._util.foreign import as_array
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import AnyArray

__all__ = ["McNemar", "mcnemar_exact"]


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
