"""Decoded images of any mode, array or tensor to RGB `PIL.Image.Image`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipretrieval._util.foreign import is_tensor
from clipretrieval._util.forks import ForkLock
from clipretrieval.errors import InvalidInputError

__all__ = [
    "CHANNELS",
    "check_image",
    "flat_rgb",
    "is_image_like",
    "pixel_size",
    "rgb_from_memory",
    "rgb_pixels",
    "rotation",
    "to_rgb",
    "turned",
]

CHANNELS = (1, 3, 4)
_ALPHA_MODES = frozenset({"1", "L", "P", "RGB", "LA", "La", "PA", "RGBA", "RGBa"})
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP = 2**18
"""Pixels that are converted at a time where a conversion takes several steps."""
# Image.load() of one lazily opened image is not safe in two threads at once, and images cannot be
# hashed: each is guarded by the lock that its identity falls on.
_LOAD_LOCKS = tuple(ForkLock() for _ in range(64))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an upright RGB copy of an image of any mode.

    The EXIF orientation is applied. Transparency is composited over white. Grays of 16 bits are scaled
    from [0, 65535] to [0, 255] and rounded; so is mode ``I``, which is how some 16-bit files open.
    Mode ``F`` is taken to be in [0, 255]. Values outside those ranges are clipped. Color profiles are
    not applied.

    Parameters
    ----------
    image : PIL.Image.Image
        Left as it is, except that an image opened lazily is loaded. Of an animation, the current frame.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, loaded, with an empty ``info``.

    Raises
    ------
    InvalidInputError
        If an image of mode ``F`` has values that are not finite.
    OSError
        If the image is lazy and its file is damaged; Pillow raises other errors too.
    """
    if not isinstance(image, Image.Image):
        raise InvalidInputError(
            f"image must be a PIL image; got an object of the type {type(image).__name__}"
        )
    with _LOAD_LOCKS[id(image) // 16 % len(_LOAD_LOCKS)].current:
        image.load()
        turn = rotation(image)
    rgb = turned(flat_rgb(image), turn)
    return rgb.copy() if rgb.im is image.im else rgb


def flat_rgb(image: Image.Image) -> Image.Image:
    """Do what `to_rgb` does to a loaded image, apart from turning it; one that is RGB shares its pixels."""
    if image.mode.startswith("I"):
        rgb = _in_strips(image, _gray_from_integers)
    elif image.mode == "F":
        rgb = _in_strips(image, _gray_from_floats)
    elif image.mode in _ALPHA_MODES and image.has_transparency_data:
        rgb = _in_strips(image, _over_white)
    elif image.mode == "RGB":
        rgb = image._new(image.im)  # drops what the file's plugin holds, such as a decoder
    else:
        rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def rotation(image: Image.Image) -> Image.Transpose | None:
    """Return what turns a loaded image upright.

    To be asked after loading: TIFF turns itself upright then, and PNG may keep its EXIF behind the pixels.
    """
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    # A damaged EXIF block, which Pillow meets with many errors, takes nothing from the pixels.
    except Exception:  # noqa: BLE001
        return None


def turned(rgb: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """Apply what `rotation` returned."""
    return rgb if turn is None else rgb.transpose(turn)


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert a few rows at a time, so that what lies between never holds the whole image."""
    width, height = image.size
    rows = max(1, _STRIP // width)
    if rows >= height:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        rgb.paste(convert(image.crop(box)), box)
    return rgb


def _over_white(image: Image.Image) -> Image.Image:
    straight = image.convert("LA") if image.mode == "La" else image
    rgba = straight.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def rgb_from_memory(payload: Any) -> Image.Image:
    """Return the RGB image of what `check_image` lets pass: a PIL image, an array or a tensor.

    Raises
    ------
    InvalidInputError
        If a float tensor's values are not finite or not in [0, 1].
    """
    if isinstance(payload, Image.Image):
        return to_rgb(payload)
    pixels = payload if isinstance(payload, np.ndarray) else _hwc_from_tensor(payload)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def rgb_pixels(payload: Any) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of an array or tensor that is RGB as it stands, shape (height, width, 3).

    None for anything that has to go through `rgb_from_memory`. May share memory with the payload.
    """
    if isinstance(payload, np.ndarray):
        check_image(payload)
        return payload if payload.ndim == 3 and payload.shape[2] == 3 else None
    if is_tensor(payload):
        check_image(payload)
        return _hwc_from_tensor(payload) if payload.shape[0] == 3 else None
    return None


def check_image(obj: Any) -> None:
    """Refuse arrays and tensors that cannot be one image, by dtype and shape alone."""
    if isinstance(obj, np.ndarray):
        if obj.dtype != np.uint8:
            raise InvalidInputError(
                f"a NumPy image must be uint8 in HWC order, not {obj.dtype}: scale it to [0, 255] and "
                "convert it with .astype('uint8'), or pass a float CHW torch tensor in [0, 1]"
            )
        if obj.ndim not in (2, 3) or (obj.ndim == 3 and obj.shape[2] not in CHANNELS) or obj.size == 0:
            raise InvalidInputError(
                "a NumPy image must have the shape (height, width) or (height, width, channels) with "
                f"1, 3 or 4 channels, none of them zero; found {obj.shape}"
            )
    elif is_tensor(obj):
        if str(obj.dtype) != "torch.uint8" and not obj.is_floating_point():
            raise InvalidInputError(
                f"a tensor image must be uint8, or float in [0, 1], not {obj.dtype}: convert it"
            )
        if obj.ndim != 3 or obj.shape[0] not in CHANNELS or obj.numel() == 0:
            raise InvalidInputError(
                "a tensor image must have the shape (channels, height, width) with 1, 3 or 4 channels, "
                f"none of them zero; found {tuple(obj.shape)}: use .permute(2, 0, 1) on height-first "
                "images and .unsqueeze(0) on grey ones"
            )


def pixel_size(payload: Any) -> tuple[int, int]:
    """Return width and height of what `rgb_from_memory` takes, in pixels."""
    if isinstance(payload, Image.Image):
        return payload.size
    height, width = payload.shape[:2] if isinstance(payload, np.ndarray) else payload.shape[1:]
    return int(width), int(height)


def is_image_like(obj: object) -> bool:
    """Whether the type of `obj` is one that a single image may have."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(obj, kinds) or is_tensor(obj)


def _hwc_from_tensor(tensor: Any) -> npt.NDArray[np.uint8]:
    tensor = tensor.detach().cpu()
    floating = tensor.is_floating_point()
    values = (tensor.float() if floating else tensor).numpy().transpose(1, 2, 0)
    if floating:
        if not np.isfinite(values).all():
            raise InvalidInputError("the float tensor has values that are not finite")
        low, high = float(values.min()), float(values.max())
        if low < 0.0 or high > 1.0:
            raise InvalidInputError(
                f"the float tensor has values in [{low:g}, {high:g}], expected [0, 1]: divide by 255, undo "
                "a normalization, or clamp(0, 1)"
            )
        values = np.rint(values * np.float32(255.0)).astype(np.uint8)
    return np.asarray(values, dtype=np.uint8)


def _gray_from_integers(image: Image.Image) -> Image.Image:
    wide = np.asarray(image).astype(np.int64)
    gray = (np.clip(wide, 0, 65535) + 128) // 257  # rounds v * 255 / 65535
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[wide == transparent] = 255
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB")


def _gray_from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise InvalidInputError("the image (mode F) has values that are not finite")
    return Image.fromarray(np.rint(np.clip(values, 0.0, 255.0)).astype(np.uint8)).convert("RGB")
