"""Image files whose headers promise what their data do not hold."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    """The file that Pillow writes of an image."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, rows: bytes = b"\0", *, bits: int = 8, colour: int = 0, interlaced: bool = False
) -> bytes:
    """A PNG file with a header of this size and whatever rows, each behind the byte of its filter."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def icon(content: bytes, width: int = 16, height: int = 16) -> bytes:
    """An ICO file whose directory gives its one image this size."""
    entry = struct.pack("<BBBBHHII", width, height, 0, 0, 1, 32, len(content), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + content


def tiff(tags: dict[int, int], content: bytes) -> bytes:
    """A TIFF file of these tags, each of one number, and the content, which begins at byte 8."""
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory


BOMB = png(12_000, 12_000)
"""144 million pixels in 67 bytes."""
