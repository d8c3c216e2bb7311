"""The votes of the nearest as log probabilities, so that they can be put together with something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.base import Contents, Queries, StoredSample
from clipretrieval.heads.statistics import Moments
from clipretrieval.heads.voting import Voting
from clipretrieval.heads.weighting import class_scores
from clipretrieval.types import Label, Neighbors

__all__ = ["LearnedVoteShares", "VoteShares", "log_shares"]

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
        return log_shares(near, self._voting.weigh(near) if near.distances.shape[1] else None, self._columns)


def log_shares(near: Neighbors, weights: Floats | None, columns: Mapping[Label, int]) -> Floats:
    """Return the logarithm of each class's share of the votes, of which none is 0.

    Parameters
    ----------
    near : Neighbors
        Each of shape (n, k).
    weights : ndarray of float64, shape (n, k), or None
        Of their votes; None where there are none, with k = 0.
    columns : mapping of (int or str) to int
        Each class's column; a neighbor of any other class has no vote.

    Returns
    -------
    ndarray of float64, shape (n, n_classes)
    """
    size = len(columns)
    if weights is None:
        return np.full((len(near), size), -np.log(size))
    codes = np.array([columns.get(label, -1) for label in near.labels.ravel().tolist()])
    codes = codes.reshape(near.labels.shape)
    counted = np.where(near.valid & (codes >= 0), weights, 0.0)
    total = counted.sum(axis=1, keepdims=True)
    counted = np.divide(counted, total, out=np.zeros_like(counted), where=total > 0)
    found: Floats = np.log((1 - FLOOR) * class_scores(codes, counted, size) + FLOOR / size)
    return found
