"""Sets of images that this repository can make, and that none of the networks measured here has seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from _new_kinds import NEW_KINDS, draw_new_kind
from _textures import TEXTURES, draw_texture
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["IMAGE_SETS", "ImageSet"]

SIZE = 64
TRAIN, TEST = 200, 100
"""Images of each class."""
FIRST_SCANS = 1200
"""Digits that are stored. Scans are in the order of their writers: the last 597 are by others."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images in two parts, uint8 of shape (n, 64, 64, 3)."""

    train: npt.NDArray[np.uint8]
    train_labels: list[str]
    test: npt.NDArray[np.uint8]
    test_labels: list[str]


def digits(seed: int) -> ImageSet:
    """Enlarge scikit-learn's scans of 8×8; the seed decides nothing."""
    scans = load_digits()
    grey = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    images = np.stack(
        [
            np.asarray(Image.fromarray(each).resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))
            for each in grey
        ]
    )
    labels = [str(label) for label in scans.target.tolist()]
    part = FIRST_SCANS
    return ImageSet(images[:part], labels[:part], images[part:], labels[part:])


def new_kinds(seed: int) -> ImageSet:
    """Draw things of ten kinds that the demo's model does not know."""
    return _drawn(draw_new_kind, NEW_KINDS, seed)


def textures(seed: int) -> ImageSet:
    """Compute surfaces of twelve kinds."""
    return _drawn(draw_texture, TEXTURES, seed)


def _drawn(draw: Callable[..., Any], kinds: Mapping[str, Any], seed: int) -> ImageSet:
    labels = {part: [kind for kind in kinds for _ in range(n)] for part, n in (("a", TRAIN), ("b", TEST))}
    rng = np.random.default_rng(seed)
    train, test = (np.stack([draw(kind, rng, SIZE) for kind in part]) for part in labels.values())
    return ImageSet(train, labels["a"], test, labels["b"])


IMAGE_SETS: dict[str, Callable[[int], ImageSet]] = {
    "digits": digits,
    "new-kinds": new_kinds,
    "textures": textures,
}
