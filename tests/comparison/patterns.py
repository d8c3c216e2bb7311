"""Drawn patterns in noise, some of them hard to tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np

NAMES = ("stripes", "bars", "checks")


def draw_patterns(n: int, seed: int) -> tuple[list[np.ndarray[Any, Any]], list[str]]:
    """Draw images of three classes, fainter and fainter patterns among them, and return their labels too."""
    drawn = np.random.default_rng(seed)
    down, across = np.indices((24, 24)) // 3
    shapes = (down % 2, across % 2, (down + across) % 2)
    images = []
    for number in range(n):
        image = np.repeat(drawn.normal(128, 40, (48, 48, 1)), 3, axis=2)
        top, left = drawn.integers(0, 24, 2)
        faint = drawn.uniform(0, 1)
        image[top : top + 24, left : left + 24] += 160 * (1 - faint) * (shapes[number % 3][..., None] - 0.5)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images, [NAMES[number % 3] for number in range(n)]
