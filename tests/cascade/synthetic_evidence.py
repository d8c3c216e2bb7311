"""What the exits of a cascade might have said of images, drawn at random."""

from __future__ import annotations

import numpy as np

from clipretrieval.cascade import ExitEvidence

COSTS = (0.5, 1.0, 2.0, 4.0)
"""In 10⁹ multiply-adds, up to each exit."""


def draw(n: int, seed: int, *, distances: bool = True) -> ExitEvidence:
    """Draw images of several difficulties: deeper exits are right more often, and surer where they are."""
    rng = np.random.default_rng(seed)
    hardness = rng.random(n)
    margins, agrees, far, correct = [], [], [], []
    for place in range(len(COSTS)):
        sure = 1 / (1 + np.exp(-(3.5 + 1.0 * place - 5 * hardness + rng.normal(0, 0.7, n))))
        right = rng.random(n) < 0.3 + 0.69 * sure
        if place:  # what one exit has right, the next mostly has, too
            right |= correct[-1] & (rng.random(n) < 0.9)
        margins.append(sure)
        correct.append(right)
        agrees.append(correct[-2] == right if place else np.zeros(n, dtype=bool))
        far.append(np.exp(2 * hardness + rng.normal(0, 0.3, n)))
    nearest = np.array(far) if distances else np.full((len(COSTS), n), np.nan)
    return ExitEvidence(np.array(margins), np.array(agrees), nearest, np.array(correct))
