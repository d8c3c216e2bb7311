"""From an RGB picture to the uint8 squares that the stages start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from open_clip.transform import MaybeConvertMode, PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose

from clipretrieval.encoding.stages import PIXEL_SIZE

__all__ = ["PIXEL_GEOMETRY", "Preparation"]

PIXEL_GEOMETRY = {"size": PIXEL_SIZE, "interpolation": "bicubic", "resize_mode": "shortest"}
"""How pictures of any size become those of the ``pixel`` stage, whatever the model's own way."""

Squares = dict[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Preparation:
    """CLIP's own preprocessing up to the last step on bytes: resize and crop, not yet normalised.

    What is left, dividing by 255 and normalising, is done a batch at a time by the engine.

    Attributes
    ----------
    cfg : mapping
        open_clip's preprocessing configuration, with the ``size`` in use.
    """

    cfg: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_clip", _geometry({**self.cfg}))
        object.__setattr__(self, "_pixel", _geometry({**self.cfg, **PIXEL_GEOMETRY}))

    def __call__(self, image: Image.Image, *, pixel: bool, clip: bool) -> Squares:
        """Prepare one picture.

        Parameters
        ----------
        image : PIL.Image.Image
            Mode RGB.
        pixel, clip : bool
            Which squares are wanted: the ``pixel`` stage's, the encoder's.

        Returns
        -------
        dict of str to ndarray of uint8
            ``"pixel"`` of shape (32, 32, 3), ``"clip"`` of shape (size, size, 3).
        """
        squares: Squares = {}
        if pixel:
            squares["pixel"] = np.asarray(self._pixel(image))  # type: ignore[attr-defined]
        if clip:
            squares["clip"] = np.asarray(self._clip(image))  # type: ignore[attr-defined]
        return squares

    def describe(self) -> dict[str, Any]:
        """Return what decides the encoder's input, as JSON values."""
        keys = ("mean", "std", "interpolation", "resize_mode", "fill_color")
        return {key: list(v) if isinstance(v := self.cfg[key], tuple) else v for key in keys}


def _geometry(cfg: dict[str, Any]) -> Compose:
    """Take open_clip's transform up to its conversion to a tensor: the part that stays a picture."""
    steps = image_transform_v2(PreprocessCfg(**cfg), is_train=False).transforms
    place = next(number for number, step in enumerate(steps) if isinstance(step, MaybeConvertMode))
    return Compose(steps[:place])
