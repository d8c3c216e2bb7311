"""Small crops of two photographs, and what tests of cascades share."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_sample_image

from clipretrieval import CascadeClassifier

STAGES = ("stem", "layer1", "layer2", "late")


class Crops(NamedTuple):
    """Images, each an array of its own, and their labels."""

    images: list[np.ndarray[Any, Any]]
    labels: list[str]


def crops(n: int, seed: int) -> Crops:
    """Cut crops out of the upper and the lower halves of two photographs: four classes."""
    photos = {"temple": load_sample_image("china.jpg"), "flower": load_sample_image("flower.jpg")}
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for number in range(n):
        name = ("flower", "temple")[number % 2]
        lower = (number // 2) % 2
        top, left = int(rng.integers(0, 140)) + 213 * lower, int(rng.integers(0, 560))
        noise = rng.integers(-40, 40, (56, 56, 3))
        crop = photos[name][top : top + 56, left : left + 56]
        images.append(np.clip(crop.astype(int) + noise, 0, 255).astype(np.uint8))
        labels.append(f"{name}, {'lower' if lower else 'upper'} half")
    return Crops(images, labels)


def forced(cascade: CascadeClassifier, threshold: float | None) -> CascadeClassifier:
    """Return a cascade that answers from the same stores, at a threshold of its own."""
    copied = CascadeClassifier.__new__(CascadeClassifier)
    copied.__dict__.update(vars(cascade))
    copied.policy_ = cascade.policy_.at(threshold)
    copied.calibration_ = cascade.calibration_
    return copied


def quietly(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call without the warning that a cascade was never calibrated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this cascade was never calibrated")
        return call(*args, **kwargs)
