"""One image, read and decoded: RGB pixels, a content id, and an error that names it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from clipretrieval._util.checks import check_int
from clipretrieval._util.files import read_file, too_many_open
from clipretrieval._util.repr import short_repr
from clipretrieval.errors import (
    ImageDecodeError,
    InvalidInputError,
    MissingDependencyError,
    StoreUnavailableError,
)
from clipretrieval.images.encoded import check_pixels, open_encoded
from clipretrieval.images.formats import foreign_format, image_extensions
from clipretrieval.images.rgb import (
    check_image,
    flat_rgb,
    is_image_like,
    pixel_size,
    rgb_from_memory,
    rgb_pixels,
    rotation,
    turned,
)
from clipretrieval.images.urls import is_url, read_url, url_name

__all__ = [
    "MAX_PIXELS",
    "DecodedImage",
    "RawImage",
    "check_max_pixels",
    "content_id",
    "decode",
    "decode_pixels",
    "image_name",
]

MAX_PIXELS = 75_000_000
"""Pixels of an image that are accepted by default: phones take photographs of 50 million."""
_HASHED = 2**20
"""Pixels that are hashed at a time."""


@dataclass(frozen=True, eq=False)
class RawImage:
    """One image as its source gave it, not yet read or decoded.

    Attributes
    ----------
    index : int
        Place in the source, counted from 0.
    payload : str, path, bytes, PIL image, ndarray or tensor
        A reference, not a copy: a source that reuses one buffer for every image must copy it.
    label : object or None
        A plain int or str where the source gave a NumPy scalar or a tensor.
    source : str or None
        The file's path where there is one.
    """

    index: int
    payload: Any
    label: Any | None = None
    source: str | None = None

    def __repr__(self) -> str:
        facts = {"payload": type(self.payload).__name__, "label": self.label, "source": self.source}
        return short_repr(self, index=self.index, **facts)


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One image, decoded.

    Attributes
    ----------
    index : int
        Place in the source, counted from 0.
    image : PIL.Image.Image
        Mode RGB, upright, fully loaded, sharing nothing with the source.
    id : str
        The content id, 32 hexadecimal digits; see `content_id`.
    label : object or None
    source : str or None
        The file's path where there is one.
    """

    index: int
    image: Image.Image
    id: str
    label: Any | None = None
    source: str | None = None


def check_max_pixels(value: Any) -> int | None:
    """Return a bound on the pixels of an image, at least 1; None is no bound."""
    return None if value is None else check_int(value, "max_pixels")


def decode(raw: RawImage, *, max_pixels: int | None = MAX_PIXELS) -> DecodedImage:
    """Read and decode one image; safe to call from several threads.

    A file is read once: its bytes are hashed and decoded from memory.

    Parameters
    ----------
    raw : RawImage
    max_pixels : int or None, default 75,000,000
        The most pixels (width × height) that an image may have; None for no bound but Pillow's own of files,
        twice ``PIL.Image.MAX_IMAGE_PIXELS``. Of a file or of bytes that is checked before anything is
        decoded. Decoding takes 4 to 10 bytes of memory a pixel for JPEG and PNG, and up to 20 for other
        formats.

    Raises
    ------
    ImageDecodeError
        If the image cannot be read or decoded, ends too early, or has too many pixels. The message names
        the file, or the image's number where there is none, and gives the reason.
    InvalidInputError
        If the payload is no kind of image.
    StoreUnavailableError
        If it is a URL that cannot be reached.
    """
    _require_image_like(raw)
    encoded: bytes | None = None
    try:
        encoded = _encoded_bytes(raw.payload)
        if encoded is None:
            image = _rgb_from_memory(raw.payload, max_pixels)
            image_id = _image_id(image)
        else:
            image = _decode_bytes(encoded, max_pixels)
            image_id = _bytes_id(encoded)
    except (MissingDependencyError, StoreUnavailableError):  # no fault of the image: it must not be skipped
        raise
    # Damaged files make Pillow's plugins raise nearly anything: struct.error, SyntaxError, KeyError…
    except Exception as error:
        raise _refusal("decode", raw, error, encoded) from error
    return DecodedImage(raw.index, image, image_id, raw.label, raw.source)


def decode_pixels(
    raw: RawImage, *, identify: bool = True, max_pixels: int | None = MAX_PIXELS
) -> tuple[npt.NDArray[np.uint8], str] | None:
    """Return the pixels and the content id of an array or tensor that is RGB as it stands.

    None for any other image, which `decode` takes. Spares those in memory the way through Pillow.

    Parameters
    ----------
    raw : RawImage
    identify : bool
        Without it the id is left empty, which spares the hashing.
    max_pixels : int or None
        As for `decode`, and so are the errors.

    Returns
    -------
    pixels : ndarray of uint8, shape (height, width, 3)
        May share memory with the payload.
    image_id : str
    """
    try:
        pixels = rgb_pixels(raw.payload)
        if pixels is None:
            return None
        check_pixels(pixel_size(pixels), max_pixels)
    except Exception as error:
        raise _refusal("decode", raw, error) from error
    content = np.ascontiguousarray(pixels).data
    return pixels, _pixel_id(pixels.shape[1], pixels.shape[0], [content]) if identify else ""


def content_id(raw: RawImage, *, max_pixels: int | None = MAX_PIXELS) -> str:
    """Return the id that `decode` would give an image, without decoding files or bytes.

    Files and bytes are identified by their encoded bytes: copies of a file share an id, whatever
    their names, and so does a file with its bytes; the same pixels encoded anew do not. PIL images,
    arrays and tensors are identified by their RGB pixels after `to_rgb`: an array, the tensor of the
    same pixels (HWC or CHW, uint8 or float) and the PIL image of them share an id, which no file has.

    Parameters
    ----------
    raw : RawImage
    max_pixels : int or None
        As for `decode`, of images in memory; files and bytes are not looked into.

    Returns
    -------
    str
        A 128-bit BLAKE2b digest, 32 hexadecimal digits.

    Raises
    ------
    ImageDecodeError
        If the file cannot be read, or the image in memory cannot be turned into RGB.
    InvalidInputError
        If the payload is no kind of image.
    """
    _require_image_like(raw)
    try:
        encoded = _encoded_bytes(raw.payload)
        if encoded is not None:
            return _bytes_id(encoded)
        return _image_id(_rgb_from_memory(raw.payload, max_pixels))
    except (MissingDependencyError, StoreUnavailableError):
        raise
    except Exception as error:
        raise _refusal("read", raw, error) from error


def _require_image_like(raw: RawImage) -> None:
    if not is_image_like(raw.payload):
        kind = type(raw.payload).__name__
        raise InvalidInputError(f"{_name(raw)} is of the type {kind}, which is no kind of image")


def _encoded_bytes(payload: Any) -> bytes | None:
    """Return the encoded bytes of a path or of bytes; None for an image that is decoded already."""
    if isinstance(payload, (str, os.PathLike)):
        return read_url(payload) if is_url(payload) else read_file(payload)
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    return None


def _rgb_from_memory(payload: Any, max_pixels: int | None) -> Image.Image:
    check_image(payload)
    check_pixels(pixel_size(payload), max_pixels)
    return rgb_from_memory(payload)


def _decode_bytes(encoded: bytes, max_pixels: int | None) -> Image.Image:
    with open_encoded(encoded, max_pixels) as image:
        turn, rgb = rotation(image), flat_rgb(image)
    del image  # before it is turned, which takes as much memory again
    return turned(rgb, turn)


def _bytes_id(encoded: bytes) -> str:
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _image_id(rgb: Image.Image) -> str:
    width, height = rgb.size
    rows = max(1, _HASHED // width)
    strips = (rgb.crop((0, top, width, min(top + rows, height))).tobytes() for top in range(0, height, rows))
    return _pixel_id(width, height, strips)


def _pixel_id(width: int, height: int, parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(f"clipretrieval RGB8 {width}x{height}\n".encode(), digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _refusal(
    verb: str, raw: RawImage, error: Exception, encoded: bytes | None = None
) -> ImageDecodeError | StoreUnavailableError:
    """Return the error for an image that could not be read or decoded, which may be no fault of its own."""
    text = f"cannot {verb} {_name(raw)}: {_reason(error, raw, encoded)}"
    # Another image could not be opened either: it must not be skipped.
    return StoreUnavailableError(text) if too_many_open(error) else ImageDecodeError(text)


def image_name(source: str | None, index: int) -> str:
    """Return what errors call an image: its file, or its place in the source, counted from 0."""
    return f"image {source!r}" if source is not None else f"image number {index} (counted from 0)"


def _name(raw: RawImage) -> str:
    named = raw.source is None and isinstance(raw.payload, (str, os.PathLike))
    return image_name(url_name(raw.payload) if named else raw.source, raw.index)


def _reason(error: Exception, raw: RawImage, encoded: bytes | None = None) -> str:
    """Say what went wrong, without the image's name."""
    path = raw.payload if isinstance(raw.payload, (str, os.PathLike)) else None
    if isinstance(error, FileNotFoundError) and path is not None and os.path.islink(path):  # noqa: PTH114
        target = Path(os.fsdecode(path)).readlink()
        return f"it is a broken link: {str(target)!r}, where it leads, does not exist"
    if encoded is not None and not isinstance(error, InvalidInputError):
        kind = foreign_format(encoded, raw.source or path, image_extensions())
        if kind is not None:
            return kind
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a format that Pillow can decode here"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"{error} That bound is Pillow's own, PIL.Image.MAX_IMAGE_PIXELS, beside max_pixels"
    if isinstance(error, InvalidInputError):
        return str(error)
    return f"{type(error).__name__}: {error}"
