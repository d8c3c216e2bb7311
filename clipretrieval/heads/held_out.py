"""What a head would have answered to stored images if each had not been stored."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.decision import Decision, Posterior
from clipretrieval.heads.fitted_head import DecisionRule, FittedHead
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.store_contents import StoreContents
from clipretrieval.heads.voting import Voting
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.stores.base import ScannableStore
from clipretrieval.types import no_neighbors

__all__ = ["HeldOut", "held_out"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Answers to stored images, each left out.

    Attributes
    ----------
    ids : list of str, length n
    answers : ndarray of int64, shape (n,)
        Classes by number, in the order of the labels.
    margins : ndarray of float64, shape (n,)
    distances : ndarray of float64, shape (n,)
        To the nearest other; NaN where the head reads no neighbors.
    correct : ndarray of bool, shape (n,)
    """

    ids: list[str]
    answers: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float64]
    distances: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]


def held_out(index: LabelledIndex, rule: DecisionRule, most: int) -> HeldOut | None:
    """Answer at most so many stored images, each left out.

    Returns
    -------
    HeldOut or None
        None where the store cannot list what it holds, or the head has no ``held_out_scores``.
    """
    if not isinstance(index.store, ScannableStore):
        return None
    contents = StoreContents(index, {}, Priors("equal"))
    numbers = index.number_classes()
    columns = numbers.of_classes(contents.classes)
    learned = rule.learned if isinstance(rule, FittedHead) else None
    sample = contents.sample(most)
    if not len(sample.ids):
        return None
    near = contents.others(sample, rule.k) if rule.k else no_neighbors(len(sample.ids))
    sample = replace(sample, neighbors=near)
    decision: Decision
    if isinstance(rule, Voting):
        decision = rule.decide(sample.vectors, near, numbers)
    elif learned is not None and hasattr(learned, "held_out_scores"):
        scores = learned.held_out_scores(sample)
        if scores.shape[1] != len(columns):
            return None
        scores[~np.isfinite(scores).any(axis=1)] = 0.0  # the only one of the only class
        decision = Posterior(scores, columns)
    else:
        return None
    nearest = near.distances[:, 0].astype(np.float64) if near.distances.shape[1] else None
    return HeldOut(
        sample.ids.tolist(),
        decision.answers,
        decision.share_and_margin[1],
        np.full(len(sample.ids), np.nan) if nearest is None else nearest,
        decision.answers == columns[sample.codes],
    )
