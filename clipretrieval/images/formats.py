"""Which formats of images Pillow decodes here, and what to do about those that it may not read."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from PIL import Image

__all__ = ["FOREIGN_ENDINGS", "foreign_format", "formats", "image_extensions"]

# Pillow only recognizes these, or hands them to another program (Ghostscript for EPS), which no file that
# merely claims to be an image should be able to start. The last three hold an image of another format, whose
# size shows only while it is decoded.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF", "BLP", "ICNS", "IPTC"})


@dataclass(frozen=True)
class _Kind:
    """A kind of image: what to say of one, and its file extensions, in lower case."""

    advice: str
    endings: tuple[str, ...]


_HEIC = _Kind(
    "it is a HEIC image, which Pillow cannot read here: convert it to JPEG or PNG, or install pillow-heif "
    "and call pillow_heif.register_heif_opener()",
    (".heic", ".heif"),
)
_AVIF = _Kind(
    "it is an AVIF image, which Pillow cannot read here: convert it to JPEG or PNG, or install a Pillow "
    "that is built with AVIF",
    (".avif",),
)
_SVG = _Kind("it is an SVG drawing, which Pillow cannot read: convert it to PNG", (".svg",))
_CAMERA = _Kind(
    "it is a raw file of a camera, which Pillow cannot read here: convert it to JPEG or PNG, with rawpy for "
    "instance",
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"),
)
_NESTED = _Kind(
    "it is of a format that wraps another image file (BLP, ICNS, IPTC), and these are not decoded: convert "
    "it to PNG",
    (".blp", ".icns", ".iim"),
)
_KINDS = (_HEIC, _AVIF, _SVG, _CAMERA, _NESTED)
FOREIGN_ENDINGS = tuple(ending for kind in _KINDS for ending in kind.endings)
"""File extensions of all these images."""

_BY_BRAND = {
    b"avif": _AVIF,
    b"avis": _AVIF,
    b"crx ": _CAMERA,
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIC),
}
"""By the brand in the first box of a file of the ISO family."""
_BY_BEGINNING = {
    b"BLP1": _NESTED,
    b"BLP2": _NESTED,
    b"icns": _NESTED,
    b"FUJIFILMCCD-RAW": _CAMERA,
    b"IIRO": _CAMERA,
    b"IIRS": _CAMERA,
    b"IIU\0": _CAMERA,
}


def formats() -> tuple[str, ...]:
    """Return the names of the formats that Pillow can decode here, those of registered plugins included."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


def image_extensions() -> tuple[str, ...]:
    """Return the file extensions that Pillow can decode here, sorted, in lower case, with their dots."""
    decoded = frozenset(formats())
    known = Image.registered_extensions()
    return tuple(sorted(extension.lower() for extension, name in known.items() if name in decoded))


def foreign_format(
    encoded: bytes, path: str | os.PathLike[str] | None, readable: Collection[str]
) -> str | None:
    """Say of bytes that could not be decoded which kind of image they are, and what to do about it.

    Parameters
    ----------
    encoded : bytes
    path : path or None
        Whose extension tells the kind where the bytes do not.
    readable : collection of str
        File extensions that Pillow can read here: an image of such a kind is damaged instead, and gives None.
    """
    kind = _by_content(encoded)
    if kind is None and path is not None:
        ending = os.path.splitext(os.fsdecode(path))[1].lower()  # noqa: PTH122
        kind = next((each for each in _KINDS if ending in each.endings), None)
    if kind is None or not set(kind.endings).isdisjoint(readable):
        return None
    return kind.advice


def _by_content(encoded: bytes) -> _Kind | None:
    if encoded[4:8] == b"ftyp":
        return _BY_BRAND.get(encoded[8:12])
    if encoded[8:10] == b"CR" and encoded[:2] == b"II":
        return _CAMERA
    for beginning, kind in _BY_BEGINNING.items():
        if encoded.startswith(beginning):
            return kind
    head = encoded[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    return _SVG if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head) else None
