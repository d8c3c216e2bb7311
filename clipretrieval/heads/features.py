"""A random map of vectors, in which a linear rule can part what it cannot part among the vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_int
from clipretrieval.types import AnyArray

__all__ = ["MOST_FEATURES", "RandomFeatures"]

Floats = npt.NDArray[np.float64]

MOST_FEATURES = 2**15
"""So that a number too large is told as such, and not by running out of memory."""


@dataclass(frozen=True)
class RandomFeatures:
    """The positive parts of random projections: x ↦ max(0, P x), where the entries of P are normal.

    In float64, so that a vector's features are, to the last digits, the same whatever it is mapped together
    with: what was added to statistics can be taken out again.

    Attributes
    ----------
    dim : int
        Number of features, from 1 to 32,768, whose second moment takes 8.6 GB.
    seed : int
        Of the projections.

    References
    ----------
    M. D. McDonnell et al., "RanPAC: Random projections and pre-trained models for continual learning",
    NeurIPS (2023), arXiv 2307.02251.
    """

    dim: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        check_int(self.dim, "dim", most=MOST_FEATURES)
        check_int(self.seed, "seed", least=0)

    @property
    def name(self) -> str:
        """Such as ``relu-2048-0``."""
        return f"relu-{self.dim}-{self.seed}"

    def __call__(self, vectors: AnyArray) -> Floats:
        """Map vectors of shape (n, d) to features of shape (n, dim)."""
        found: Floats = vectors.astype(np.float64) @ _projections(vectors.shape[1], self.dim, self.seed)
        np.maximum(found, 0.0, out=found)
        return found


@lru_cache(maxsize=4)
def _projections(dim: int, features: int, seed: int) -> Floats:
    """Return the projections, shape (dim, features), scaled so that features have the vectors' length."""
    drawn: Floats = np.random.Generator(np.random.PCG64(seed)).standard_normal((dim, features))
    drawn *= np.sqrt(2.0 / features)
    drawn.flags.writeable = False
    return drawn
