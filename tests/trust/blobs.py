"""Vectors of classes that overlap: what is fitted, held out and asked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

N_CLASSES, DIM = 4, 6


def blobs(n: int, seed: int) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Draw vectors around the corners of a simplex; about a fifth lie nearer to another class."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, N_CLASSES, n)
    vectors = np.eye(N_CLASSES, DIM)[codes] * 2.5 + rng.normal(size=(n, DIM))
    return vectors.astype(np.float32), codes.tolist()


def named(codes: list[int]) -> list[str]:
    """Give classes names, one of them with odd letters."""
    return [("ape", "bee, \t“b”", "cat", "dög")[code] for code in codes]
