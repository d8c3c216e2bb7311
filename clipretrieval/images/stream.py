"""Anything that holds pictures, as a stream of upright RGB pictures with content ids.

What is accepted as `images`, here and wherever the library takes pictures:

- the path of a folder: its sub-folders are the classes, see `scan_folder`;
- a table with a column of paths: the path of a CSV file, a pandas or polars DataFrame, a pyarrow Table or a
  Hugging Face Dataset, see `read_table`; also a single column, as a Series or an Arrow array;
- one picture, taken as a batch of one: the path of a file, encoded bytes, a PIL image of any mode, a
  uint8 array of shape (height, width) or (height, width, channels), or a tensor of shape
  (channels, height, width), uint8 or float in [0, 1]; with 1, 3 (RGB) or 4 (RGBA) channels;
- a uint8 array of shape (n, height, width) or (n, height, width, channels), or a tensor of shape
  (n, channels, height, width);
- a sequence, iterator or generator of single pictures, or of pairs (picture, label);
- a torch ``Dataset`` of either, or a ``DataLoader``, whose batches are taken apart again.

Reading is in two phases: `iter_raw` walks through the source, cheaply and in order, in the thread of the
caller; `decode` does the work and may run in other threads. `iter_images` is one after the other.

torch is recognised where it is loaded already; this module never imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clipretrieval._util.checks import check_choice, check_list
from clipretrieval.errors import ImageDecodeError
from clipretrieval.images.decoding import (
    MAX_PIXELS,
    DecodedImage,
    RawImage,
    check_max_pixels,
    content_id,
    decode,
)
from clipretrieval.images.folders import ImageFolder, scan_folder
from clipretrieval.images.rgb import to_rgb
from clipretrieval.images.sources import count_hint, iter_raw
from clipretrieval.images.tables import ImageTable, read_table

__all__ = [
    "DecodedImage",
    "ImageFolder",
    "ImageTable",
    "RawImage",
    "SkippedImage",
    "check_on_error",
    "content_id",
    "count_hint",
    "decode",
    "iter_images",
    "iter_raw",
    "read_table",
    "scan_folder",
    "to_rgb",
    "unique_ids",
]


@dataclass(frozen=True)
class SkippedImage:
    """An image that was passed over: it could not be decoded, or its vector is of no use.

    Attributes
    ----------
    index : int
        Place in the source, counted from 0.
    source : str or None
        The file's path where there is one.
    reason : str
        What is wrong: a sentence that names the image.
    """

    index: int
    source: str | None
    reason: str


def iter_images(
    images: Any,
    labels: Any = None,
    *,
    on_error: str = "raise",
    skipped: list[SkippedImage] | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> Iterator[DecodedImage]:
    """Decode a source of pictures one by one.

    Parameters
    ----------
    images : image-like
        See `clipretrieval.images`.
    labels : sequence or iterator, optional
        One label a picture; see `iter_raw`.
    on_error : {"raise", "skip"}, default "raise"
        What to do about a picture that cannot be decoded. Errors of the source itself are raised
        either way.
    skipped : list, optional
        Receives a `SkippedImage` for every picture passed over.
    max_pixels : int or None, default 75,000,000
        The most pixels that an image may have; see `decode`. None for no bound.

    Yields
    ------
    DecodedImage
        In the order of the source.

    Raises
    ------
    ImageDecodeError
        If a picture cannot be decoded and `on_error` is ``"raise"``.
    InvalidInputError
        At the call, if `on_error` or `max_pixels` is not as it should be; and wherever `iter_raw` raises it.
    """
    check_on_error(on_error)
    check_max_pixels(max_pixels)
    check_list(skipped, "skipped")
    # Checked here, at the call; the pictures are decoded as they are asked for.
    attempts = (_attempt(raw, on_error, skipped, max_pixels) for raw in iter_raw(images, labels))
    return (decoded for decoded in attempts if decoded is not None)


def _attempt(
    raw: RawImage, on_error: str, skipped: list[SkippedImage] | None, max_pixels: int | None
) -> DecodedImage | None:
    try:
        return decode(raw, max_pixels=max_pixels)
    except ImageDecodeError as error:
        if on_error == "raise":
            raise
        if skipped is not None:
            skipped.append(SkippedImage(raw.index, raw.source, str(error)))
        return None


def check_on_error(value: object) -> None:
    """Refuse any error policy but ``"raise"`` and ``"skip"``.

    Raises
    ------
    InvalidInputError
        If `value` is something else.
    """
    check_choice(value, "on_error", ("raise", "skip"))


def unique_ids(ids: list[str], seen: dict[str, int]) -> list[str]:
    """Tell repeats of a content id apart by their order.

    Parameters
    ----------
    ids : list of str
        Content ids of one batch.
    seen : dict of str to int
        How often each id has come so far; updated. Start with an empty one and pass it on from batch to
        batch.

    Returns
    -------
    list of str
        The first of equal ids as it is, then with ``-2``, ``-3``, … behind it. No suffixed id meets
        another content id, since those are hexadecimal digits alone.
    """
    unique = []
    for picture_id in ids:
        seen[picture_id] = seen.get(picture_id, 0) + 1
        unique.append(picture_id if seen[picture_id] == 1 else f"{picture_id}-{seen[picture_id]}")
    return unique
