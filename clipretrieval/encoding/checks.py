"""The side of the pictures that an encoder takes, checked."""

from __future__ import annotations

from clipretrieval._util.checks import check_int
from clipretrieval.errors import InvalidInputError

__all__ = ["LARGEST_SIDE", "check_size"]

LARGEST_SIDE = 4096
"""Pixels: beyond it, a single picture's activations take gigabytes."""


def check_size(image_size: int | None, own: int) -> int:
    """Return the side in pixels, the model's own where none is asked for.

    Raises
    ------
    InvalidInputError
        If it is not a multiple of 32 from 32 to 4096.
    """
    if image_size is None:
        return own
    size = check_int(image_size, "image_size", least=32, most=LARGEST_SIDE)
    if size % 32:
        raise InvalidInputError(
            f"image_size must be a multiple of 32, at least 32; got {size} (the model's own is {own})"
        )
    return size
