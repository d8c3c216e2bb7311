"""From an RGB image to the uint8 squares that the stages start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipretrieval.encoding.geometry import Geometry
from clipretrieval.encoding.stages import PIXEL_SIZE
from clipretrieval.errors import ImageDecodeError

__all__ = ["MOST_ELONGATED", "PIXEL_GEOMETRY", "Preparation", "RgbImage", "Squares"]

PIXEL_GEOMETRY = {"size": PIXEL_SIZE, "interpolation": "bicubic", "resize_mode": "shortest"}
"""How images of any size become those of the ``pixel`` stage, whatever the model's own way."""

MOST_ELONGATED = 600
"""Longer side over shorter side: resized to 224 pixels, such an image takes up some 100 MB."""

RgbImage: TypeAlias = Image.Image | npt.NDArray[np.uint8]
Squares = dict[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Preparation:
    """A model's own preprocessing up to the last step on bytes: resize and crop, not yet normalized.

    What is left, dividing by 255 and normalizing, is done a batch at a time by the engine.

    Attributes
    ----------
    cfg : mapping
        open_clip's preprocessing configuration, with the ``size`` in use; timm's ``crop_pct`` beside it.
    """

    cfg: Mapping[str, Any]

    def __post_init__(self) -> None:
        mean, std = self.cfg["mean"], self.cfg["std"]
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std need three values each, std positive ones; found {mean}, {std}")
        object.__setattr__(self, "_clip", Geometry.of(self.cfg))
        object.__setattr__(self, "_pixel", Geometry.of({**self.cfg, **PIXEL_GEOMETRY, "crop_pct": 1.0}))

    def check(self, image: RgbImage, name: str | None) -> None:
        """Refuse an image so narrow that resizing its shorter side would take up hundreds of megabytes.

        Raises
        ------
        ImageDecodeError
            If its sides differ by more than `MOST_ELONGATED` times.
        """
        width, height = image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
        if max(width, height) > MOST_ELONGATED * min(width, height):
            raise ImageDecodeError(
                f"{name or 'an image'} is {width} × {height} pixels: too narrow to be resized; expected "
                f"sides that differ by {MOST_ELONGATED} times at most. Leave it out or crop it"
            )

    def batch(self, images: Sequence[RgbImage], *, pixel: bool, clip: bool) -> Squares:
        """Prepare several images.

        Arrays are resized by Pillow too, one by one: that is CLIP's own arithmetic to the last bit, and was
        measured to be faster than torchvision's resizing of a whole batch of bytes.

        Parameters
        ----------
        images : sequence of PIL.Image.Image (RGB), or of uint8 arrays of shape (height, width, 3)

        Returns
        -------
        dict of str to ndarray of uint8, shape (n, side, side, 3)
        """
        sides = {"pixel": PIXEL_SIZE} if pixel else {}
        sides |= {"clip": self.cfg["size"]} if clip else {}
        return {
            name: np.stack([self._square(image, name, side) for image in images])
            for name, side in sides.items()
        }

    def _square(self, image: RgbImage, name: str, side: int) -> npt.NDArray[np.uint8]:
        geometry: Geometry = self._pixel if name == "pixel" else self._clip  # type: ignore[attr-defined]
        if isinstance(image, np.ndarray):
            if image.shape[:2] == (side, side) and geometry.crop_pct == 1:
                return image
            image = Image.fromarray(image)
        return np.asarray(geometry.square(image))

    def describe(self) -> dict[str, Any]:
        """Return what decides the encoder's input, as JSON values."""
        keys = ["mean", "std", "interpolation", "resize_mode"]
        if self.cfg["resize_mode"] == "longest":
            keys.append("fill_color")
        if self.cfg.get("crop_pct", 1.0) != 1:
            keys.append("crop_pct")
        return {key: list(v) if isinstance(v := self.cfg[key], tuple) else v for key in keys}
