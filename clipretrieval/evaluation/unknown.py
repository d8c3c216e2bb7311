"""How well images of no fitted class are told from those of the classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval.evaluation.reliability import error_auroc

__all__ = ["UnknownFigures"]


@dataclass(frozen=True)
class UnknownFigures:
    """What `RetrievalClassifier.score_samples` tells of images that are of no class.

    Attributes
    ----------
    n : int
        How many there were.
    auroc : float
        The area under the ROC curve, in [0, 1]: the probability that one of them is less like what is stored
        than one of the labelled images, ties counting one half. 0.5 is chance.
    known_turned_away, unknown_turned_away : float or None
        The shares of the labelled images and of these that are answered `unknown`; None where it is not set.
    """

    n: int
    auroc: float
    known_turned_away: float | None = None
    unknown_turned_away: float | None = None

    @classmethod
    def of(
        cls, known: npt.NDArray[np.float64], unknown: npt.NDArray[np.float64], least: float
    ) -> UnknownFigures:
        """Compare the scores of both; those below `least` are turned away, and none where it is -inf."""
        scores = np.concatenate([known, unknown])
        auroc = error_auroc(scores, np.arange(len(scores)) < len(known), by="margin")
        away = [float((part < least).mean()) if math.isfinite(least) else None for part in (known, unknown)]
        return cls(len(unknown), auroc, *away)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return dict(vars(self))
