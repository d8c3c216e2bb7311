"""How CLIP's preprocessing makes squares of images, on Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

__all__ = ["Geometry"]

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "random": Image.Resampling.BICUBIC,  # what open_clip takes where it does not train
}


@dataclass(frozen=True)
class Geometry:
    """Resizes and crops as open_clip's ``image_transform_v2`` and timm's evaluation do, pixel for pixel.

    Attributes
    ----------
    size : int
        Side of the squares, in pixels.
    interpolation : {"bicubic", "bilinear", "lanczos", "box", "hamming", "random"}
        ``"random"`` is bicubic outside of training.
    resize_mode : {"shortest", "longest", "squash"}
        ``"shortest"``: the shorter side becomes `size`, and what is too much of the longer is cut off.
        ``"longest"``: the longer side becomes `size`, and the shorter is padded. ``"squash"``: both become
        `size`.
    fill_color : int, or sequence of int, length 3
        Of the padding.
    crop_pct : float
        What is resized to ``size / crop_pct``, and cut to `size` then.
    """

    size: int
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: Any = 0
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        if self.interpolation not in _FILTERS:
            raise ValueError(
                f"interpolation must be one of {', '.join(_FILTERS)}; found {self.interpolation!r}"
            )
        if self.resize_mode not in ("shortest", "longest", "squash"):
            raise ValueError(f"resize_mode must be shortest, longest or squash; found {self.resize_mode!r}")

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Geometry:
        """Read what open_clip's preprocessing configuration says of it."""
        size = cfg["size"]
        side = int(size[0] if isinstance(size, list | tuple) else size)
        return cls(
            side, cfg["interpolation"], cfg["resize_mode"], cfg.get("fill_color", 0), cfg.get("crop_pct", 1.0)
        )

    def square(self, image: Image.Image) -> Image.Image:
        """Make a square of an RGB image."""
        size, (width, height) = math.floor(self.size / self.crop_pct), image.size
        if self.resize_mode == "squash":
            return _cropped(self._resized(image, size, size), self.size)
        if self.resize_mode == "shortest":
            shorter, longer = sorted((width, height))
            longer = int(size * longer / shorter)
            wanted = (size, longer) if width <= height else (longer, size)
            return _cropped(self._resized(image, *wanted), self.size)
        ratio = max(height / size, width / size)
        resized = self._resized(image, max(1, round(width / ratio)), max(1, round(height / ratio)))
        return _cropped(self._padded(resized), self.size)

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        if image.size == (width, height):
            return image
        return image.resize((width, height), _FILTERS[self.interpolation])

    def _padded(self, image: Image.Image) -> Image.Image:
        right, below = (max(0, self.size - side) for side in image.size)
        if not right and not below:
            return image
        fill = self.fill_color
        color = tuple(fill) if isinstance(fill, list | tuple) else (fill,) * 3
        border = (right // 2, below // 2, (right + 1) // 2, (below + 1) // 2)
        return ImageOps.expand(image, border, color)


def _cropped(image: Image.Image, size: int) -> Image.Image:
    """Cut the middle out."""
    left, top = (round((side - size) / 2) for side in image.size)
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))
