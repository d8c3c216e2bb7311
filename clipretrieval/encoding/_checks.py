"""Arguments of the encoder, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipretrieval.errors import InvalidInputError

__all__ = ["check_size", "check_whole", "side"]


def side(size: Any) -> int:
    return int(size[0]) if isinstance(size, Sequence) else int(size)


def check_whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 2**63:
        raise InvalidInputError(f"{name} must be a whole number of at least {least}; got {value!r}")
    return int(value)


def check_size(image_size: int | None, own: int) -> int:
    if image_size is None:
        return own
    image_size = check_whole("image_size", image_size, 32)
    if image_size % 32:
        raise InvalidInputError(
            f"image_size must be a multiple of 32, at least 32; got {image_size!r} (the model's own is {own})"
        )
    return image_size
