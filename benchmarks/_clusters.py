"""Vectors in clusters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
CLUSTERS, SPREAD_DIMS = 200, 32


def clustered(count: int, dim: int, queries: int) -> tuple[Array, Array]:
    """Draw rows and queries from one mixture: clusters that spread in 32 directions, and a little noise.

    Returns
    -------
    rows : ndarray of float32, shape (count, dim)
    queries : ndarray of float32, shape (queries, dim)
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, dim), dtype=np.float32)
    spread = rng.standard_normal((SPREAD_DIMS, dim), dtype=np.float32)
    total = count + queries
    drawn = centres[rng.integers(0, CLUSTERS, total)]
    drawn += rng.standard_normal((total, SPREAD_DIMS), dtype=np.float32) @ spread / np.sqrt(SPREAD_DIMS)
    drawn += 0.1 * rng.standard_normal((total, dim), dtype=np.float32)
    return drawn[:count], drawn[count:]
