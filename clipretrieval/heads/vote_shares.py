"""The votes of the nearest as log probabilities, so that they can be put together with something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.base import Contents, Queries, StoredSample
from clipretrieval.heads.statistics import Moments
from clipretrieval.heads.voting import Voting
from clipretrieval.heads.weighting import class_scores
from clipretrieval.types import Neighbors

__all__ = ["LearnedVoteShares", "VoteShares"]

Floats = npt.NDArray[np.float64]

FLOOR = 0.02
"""The share that is divided among all classes: a class without a vote is not impossible."""


@dataclass(frozen=True)
class VoteShares:
    """A head that says of each class its share of the votes.

    Parameters
    ----------
    voting : Voting
        Who votes, and how much each vote counts.
    """

    voting: Voting

    @property
    def k(self) -> int:
        """Neighbors that vote."""
        return int(self.voting.k)

    @property
    def moments(self) -> Sequence[Moments]:
        """No statistics are read."""
        return ()

    def learn(self, contents: Contents) -> LearnedVoteShares:
        """Take up the classes; there is nothing else to learn."""
        return LearnedVoteShares(self.voting, contents)


class LearnedVoteShares:
    """Shares of the votes of a store's contents.

    Parameters
    ----------
    voting : Voting
    contents : Contents
    """

    def __init__(self, voting: Voting, contents: Contents) -> None:
        self._voting, self._contents = voting, contents
        self._columns = {label: column for column, label in enumerate(contents.classes)}

    def log_scores(self, queries: Queries) -> Floats:
        """Return the logarithm of each class's share of the votes, shape (n, n_classes)."""
        return self._shares(queries.neighbors)

    def held_out_scores(self, sample: StoredSample) -> Floats:
        """Return the log scores of stored vectors by the votes of the others."""
        return self._shares(self._contents.others(sample, int(self._voting.k)))

    def _shares(self, near: Neighbors) -> Floats:
        size = len(self._columns)
        if not near.distances.shape[1]:
            return np.full((len(near), size), -np.log(size))
        columns = np.array([self._columns.get(label, -1) for label in near.labels.ravel().tolist()])
        columns = columns.reshape(near.labels.shape)
        weights = np.where(near.valid & (columns >= 0), self._voting.weigh(near), 0.0)
        total = weights.sum(axis=1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        votes = class_scores(columns, weights, size)
        found: Floats = np.log((1 - FLOOR) * votes + FLOOR / size)
        return found
