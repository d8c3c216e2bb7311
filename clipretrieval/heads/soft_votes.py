"""Votes that count by how much farther a neighbor is than the nearest one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.base import Contents, Queries, StoredSample
from clipretrieval.heads.vote_shares import log_shares
from clipretrieval.types import Label, Neighbors

__all__ = ["SoftVotes"]

Floats = npt.NDArray[np.float64]

SPREADS = (0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0, np.inf)
"""Temperatures that are compared, relative to how much farther than the nearest the others are, by median."""
NEAREST_ALONE = 1e-9
"""A temperature, for where each class has a single vector, so that none can be left out."""


@dataclass(frozen=True, eq=False)
class SoftVotes:
    """The k nearest neighbors vote, a farther one less: exp(−(d − d₁) / temperature).

    Attributes
    ----------
    k : int
    classes : mapping of (int or str) to int
        Each class's column.
    temperature : float
        In the unit of the distances; inf: all votes count 1.
    held : Neighbors
        Of the sample that the temperature was chosen on, each vector itself left out.
    """

    k: int
    classes: dict[Label, int]
    temperature: float
    held: Neighbors = field(repr=False)

    @classmethod
    def learn(cls, contents: Contents, sample: StoredSample, k: int) -> SoftVotes:
        """Choose the temperature under which stored vectors, each left out, are most probable."""
        columns = {label: column for column, label in enumerate(contents.classes)}
        near = contents.others(sample, k)
        if not len(near):
            return cls(k, columns, NEAREST_ALONE, near)
        behind = (near.distances - near.distances[:, :1])[near.valid]
        scale = float(np.median(behind[behind > 0])) if (behind > 0).any() else 1.0
        tried = [cls(k, columns, spread * scale, near) for spread in SPREADS]
        rows = np.arange(len(sample.codes))
        return max(tried, key=lambda each: float(each._scores(near)[rows, sample.codes].mean()))

    def log_scores(self, queries: Queries) -> Floats:
        """Return the logarithm of each class's share of the votes, shape (n, n_classes)."""
        return self._scores(queries.neighbors)

    def held_out_scores(self, sample: StoredSample) -> Floats:
        """Return the log scores of stored vectors, by their neighbors or those of the choice."""
        if sample.neighbors is not None:
            return self._scores(sample.neighbors.first(self.k))
        if len(sample.codes) != len(self.held):
            raise ValueError("these are not the vectors that were held out")
        return self._scores(self.held)

    def _scores(self, near: Neighbors) -> Floats:
        """Count the votes, shape (n, n_classes)."""
        if not near.distances.shape[1]:
            return log_shares(near, None, self.classes)
        behind = np.where(near.valid, near.distances.astype(np.float64) - near.distances[:, :1], 0.0)
        return log_shares(near, np.exp(-behind / self.temperature), self.classes)
