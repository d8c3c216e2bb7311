"""One picture, read and decoded: RGB pixels, a content id, and an error that names it."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from clipretrieval._regular_files import read_regular_file
from clipretrieval._rgb import is_picture_like, rgb_from_memory, rgb_pixels, to_rgb
from clipretrieval.errors import ImageDecodeError, InvalidInputError

__all__ = ["DecodedImage", "RawImage", "content_id", "decode", "decode_pixels", "picture_extensions"]

# Pillow only recognises these, or hands them to another program (Ghostscript for EPS), which no
# file that merely claims to be a picture should be able to start.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


@dataclass(frozen=True, eq=False)
class RawImage:
    """One picture as its source gave it, not yet read or decoded.

    Attributes
    ----------
    index : int
        Place in the source, counted from 0.
    payload : str, path, bytes, PIL image, ndarray or tensor
        A reference, not a copy: a source that reuses one buffer for every picture must copy it.
    label : object or None
        A plain int or str where the source gave a NumPy scalar or a tensor.
    source : str or None
        The file's path where there is one.
    """

    index: int
    payload: Any
    label: Any | None = None
    source: str | None = None


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One picture, decoded.

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


def decode(raw: RawImage) -> DecodedImage:
    """Read and decode one picture; safe to call from several threads.

    A file is read once: its bytes are hashed and decoded from memory.

    Raises
    ------
    ImageDecodeError
        If the picture cannot be read or decoded. The message names the file, or the picture's number
        where there is none, and gives the reason.
    InvalidInputError
        If the payload is no kind of picture.
    """
    _require_picture_like(raw)
    try:
        encoded = _encoded_bytes(raw.payload)
        if encoded is None:
            image = rgb_from_memory(raw.payload)
            picture_id = _image_id(image)
        else:
            image = _decode_bytes(encoded)
            picture_id = _bytes_id(encoded)
    # Damaged files make Pillow's plugins raise nearly anything: struct.error, SyntaxError, KeyError…
    except Exception as error:
        raise ImageDecodeError(f"cannot decode {_name(raw)}: {_reason(error)}") from error
    return DecodedImage(raw.index, image, picture_id, raw.label, raw.source)


def decode_pixels(raw: RawImage, *, identify: bool = True) -> tuple[npt.NDArray[np.uint8], str] | None:
    """Return the pixels and the content id of an array or tensor that is RGB as it stands.

    None for any other picture, which `decode` takes. Spares those in memory the way through Pillow.

    Parameters
    ----------
    raw : RawImage
    identify : bool
        Without it the id is left empty, which spares the hashing.

    Returns
    -------
    pixels : ndarray of uint8, shape (height, width, 3)
        May share memory with the payload.
    picture_id : str

    Raises
    ------
    ImageDecodeError
        As `decode` does.
    """
    try:
        pixels = rgb_pixels(raw.payload)
    except Exception as error:
        raise ImageDecodeError(f"cannot decode {_name(raw)}: {_reason(error)}") from error
    if pixels is None:
        return None
    return pixels, _pixel_id(pixels.shape[1], pixels.shape[0], pixels.tobytes()) if identify else ""


def content_id(raw: RawImage) -> str:
    """Return the id that `decode` would give a picture, without decoding files or bytes.

    Files and bytes are identified by their encoded bytes: copies of a file share an id, whatever
    their names, and so does a file with its bytes; the same pixels encoded anew do not. PIL images,
    arrays and tensors are identified by their RGB pixels after `to_rgb`: an array, the tensor of the
    same pixels (HWC or CHW, uint8 or float) and the PIL image of them share an id, which no file has.

    Returns
    -------
    str
        A 128-bit BLAKE2b digest, 32 hexadecimal digits.

    Raises
    ------
    ImageDecodeError
        If the file cannot be read, or the picture in memory cannot be turned into RGB.
    InvalidInputError
        If the payload is no kind of picture.
    """
    _require_picture_like(raw)
    try:
        encoded = _encoded_bytes(raw.payload)
        return _image_id(rgb_from_memory(raw.payload)) if encoded is None else _bytes_id(encoded)
    except Exception as error:
        raise ImageDecodeError(f"cannot read {_name(raw)}: {_reason(error)}") from error


def picture_extensions() -> tuple[str, ...]:
    """Return the file extensions that Pillow can decode here, sorted, in lower case, with their dots."""
    formats = frozenset(_formats())
    known = Image.registered_extensions()
    return tuple(sorted(extension.lower() for extension, name in known.items() if name in formats))


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


def _require_picture_like(raw: RawImage) -> None:
    if not is_picture_like(raw.payload):
        kind = type(raw.payload).__name__
        raise InvalidInputError(f"{_name(raw)} is of the type {kind}, which is no kind of picture")


def _encoded_bytes(payload: Any) -> bytes | None:
    """Return the encoded bytes of a path or of bytes; None for a picture that is decoded already."""
    if isinstance(payload, (str, os.PathLike)):
        return read_regular_file(payload)
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    return None


def _decode_bytes(encoded: bytes) -> Image.Image:
    if not encoded:
        raise InvalidInputError("it is empty (0 bytes)")
    with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
        return to_rgb(image)


def _bytes_id(encoded: bytes) -> str:
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _image_id(rgb: Image.Image) -> str:
    return _pixel_id(rgb.width, rgb.height, rgb.tobytes())


def _pixel_id(width: int, height: int, pixels: bytes) -> str:
    digest = hashlib.blake2b(f"clipretrieval RGB8 {width}x{height}\n".encode(), digest_size=16)
    digest.update(pixels)
    return digest.hexdigest()


def _name(raw: RawImage) -> str:
    if raw.source is not None:
        return f"picture {raw.source!r}"
    if isinstance(raw.payload, (str, os.PathLike)):
        return f"picture {os.fspath(raw.payload)!r}"
    return f"picture number {raw.index} (counted from 0)"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not a picture of a format that Pillow can decode here"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, (InvalidInputError, Image.DecompressionBombError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
