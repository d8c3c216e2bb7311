"""Encoded images, loaded: none of more pixels than are allowed, and none whose data end too early."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from PIL import Image, ImageFile

from clipretrieval.errors import InvalidInputError
from clipretrieval.images.formats import formats

__all__ = ["check_pixels", "open_encoded"]

_PNG = b"\x89PNG\r\n\x1a\n"
_ICO = b"\0\0\1\0"
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_READ_PAST_THEIR_END = frozenset({"JPEG2000"})
"""Formats whose decoder asks for more than a whole file has."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of PNG, by its color type."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of each pass of an interlaced PNG, and the steps between them."""
_MOST_INFLATED = 1032
"""Bytes that one byte of a zlib stream can stand for at most."""
_BLOCK = 2**20
_CUT_OFF = "its data end before its last row: the file was cut off or is damaged; get a whole copy of it"


@contextmanager
def open_encoded(encoded: bytes, max_pixels: int | None) -> Iterator[Image.Image]:
    """Open and load an encoded image.

    Raises
    ------
    InvalidInputError
        If it is empty, has more than `max_pixels`, which is checked before anything is decoded, or its data
        end before its pixels do.
    OSError
        If it is no image or damaged; Pillow raises other errors too.
    """
    if not encoded:
        raise InvalidInputError("it is empty (0 bytes)")
    if encoded.startswith(_ICO):  # Pillow decodes it when it is opened
        for size in _icon_sizes(encoded):
            check_pixels(size, max_pixels)
    # Set for the whole process by other libraries, this makes Pillow accept files that end too early.
    watched = _EncodedFile(encoded) if ImageFile.LOAD_TRUNCATED_IMAGES else None
    with Image.open(watched or io.BytesIO(encoded), formats=formats()) as image:
        check_pixels(image.size, max_pixels)
        if image.format == "TIFF":
            check_pixels(_tile_size(image), max_pixels)
        wanted = _png_bytes(encoded) if image.format == "PNG" else 0
        if wanted > _MOST_INFLATED * len(encoded):
            raise InvalidInputError(_CUT_OFF)
        if watched is not None:
            watched.exhausted = False  # whoever tells formats apart may read on
        image.load()
        cut_off = watched is not None and watched.exhausted and image.format not in _READ_PAST_THEIR_END
        if cut_off or (wanted and not _png_is_complete(encoded, wanted, image)):
            raise InvalidInputError(_CUT_OFF)
        yield image


def check_pixels(size: tuple[int, int], max_pixels: int | None) -> None:
    """Refuse an image whose width and height make too many pixels; None is no bound."""
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        raise InvalidInputError(
            f"it has {width} × {height} pixels, {width * height:,} in all, but at most {max_pixels:,} are "
            "decoded: shrink it, or pass a higher max_pixels (None for no bound) if its source can be trusted"
        )


class _EncodedFile(io.BytesIO):
    """The bytes of a file, which notes whether more were asked for than there are."""

    exhausted = False

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if size and not found:
            self.exhausted = True
        return found


def _tile_size(image: Any) -> tuple[int, int]:
    """Return the size of a TIFF's tiles, one of which is decoded at a time; they may exceed the image."""
    return int(image.tag_v2.get(_TILE_WIDTH, 0)), int(image.tag_v2.get(_TILE_LENGTH, 0))


def _png_is_complete(encoded: bytes, wanted: int, image: Image.Image) -> bool:
    """Whether the data of a decoded PNG reach its last row; Pillow would leave the rest black."""
    if encoded.rfind(b"IEND") < 0:
        return False
    interlaced = encoded[28] != 0
    corner = image.getpixel((image.width - 1, image.height - 1))
    seen = any(corner) if isinstance(corner, tuple) else bool(corner)
    # Rows are decoded as a whole: one pixel that is not black proves the last one.
    return (seen and not interlaced) or _inflates_to(encoded, wanted)


def _png_bytes(encoded: bytes) -> int:
    """Return how many bytes the rows of a PNG take up before they are compressed."""
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", encoded, 16)
    bits = depth * _CHANNELS.get(color, 1)
    total = 0
    for left, top, right, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _inflates_to(encoded: bytes, wanted: int) -> bool:
    """Whether the image data of a PNG hold at least so many bytes."""
    stream, total = zlib.decompressobj(), 0
    try:
        for part in _png_data(encoded):
            rest: bytes | memoryview = part
            while rest:
                total += len(stream.decompress(rest, _BLOCK))
                if total >= wanted:
                    return True
                rest = stream.unconsumed_tail
    except zlib.error:
        return False
    return total + len(stream.flush()) >= wanted


def _png_data(encoded: bytes) -> Iterator[memoryview]:
    """Yield the content of the chunks that hold the image of a PNG."""
    place, view = len(_PNG), memoryview(encoded)
    while place + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, place)
        if kind == b"IDAT":
            yield view[place + 8 : place + 8 + length]
        place += 12 + length


def _icon_sizes(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Yield the size of every image in an ICO file, as that image has it; the file's directory may lie."""
    count = struct.unpack_from("<H", encoded, 4)[0] if len(encoded) >= 6 else 0
    for place in range(6, 6 + 16 * count, 16):
        with suppress(struct.error):  # of an entry that leads nowhere
            start = struct.unpack_from("<I", encoded, place + 12)[0]
            if encoded[start : start + 8] == _PNG:
                yield struct.unpack_from(">II", encoded, start + 16)
            else:
                old = struct.unpack_from("<I", encoded, start)[0] == 12
                width, height = struct.unpack_from("<HH" if old else "<II", encoded, start + 4)
                # A negative height tells that the bitmap stands upright; half of it is a mask.
                yield width, (2**32 - height if height >> 24 == 0xFF else height) // 2
