"""Images decoded one by one, in the order of their source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clipretrieval._util.checks import check_choice, check_list
from clipretrieval.errors import ImageDecodeError
from clipretrieval.images.decoding import MAX_PIXELS, DecodedImage, RawImage, check_max_pixels, decode
from clipretrieval.images.sources import iter_raw

__all__ = ["SkippedImage", "check_on_error", "iter_images", "unique_ids"]


@dataclass(frozen=True)
class SkippedImage:
    """An image that was skipped: it could not be decoded, or its vector is of no use.

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
    """Decode a source of images one by one.

    Parameters
    ----------
    images : image-like
        See `clipretrieval.images`.
    labels : sequence or iterator, optional
        One label for each image; see `iter_raw`.
    on_error : {"raise", "skip"}, default "raise"
        What to do about an image that cannot be decoded. Errors of the source itself are raised
        either way.
    skipped : list, optional
        Receives a `SkippedImage` for every image skipped.
    max_pixels : int or None, default 75,000,000
        The most pixels that an image may have; see `decode`. None for no bound.

    Yields
    ------
    DecodedImage
        In the order of the source.

    Raises
    ------
    ImageDecodeError
        If an image cannot be decoded and `on_error` is ``"raise"``.
    InvalidInputError
        At the call, if `on_error` or `max_pixels` is not as it should be; and wherever `iter_raw` raises it.
    """
    check_on_error(on_error)
    check_max_pixels(max_pixels)
    check_list(skipped, "skipped")
    # Checked here, at the call; the images are decoded as they are asked for.
    return _decode_each(iter_raw(images, labels), on_error, skipped, max_pixels)


def _decode_each(
    raw_images: Iterator[RawImage],
    on_error: str,
    skipped: list[SkippedImage] | None,
    max_pixels: int | None,
) -> Iterator[DecodedImage]:
    for raw in raw_images:
        try:
            decoded = decode(raw, max_pixels=max_pixels)
        except ImageDecodeError as error:
            if on_error == "raise":
                raise
            if skipped is not None:
                skipped.append(SkippedImage(raw.index, raw.source, str(error)))
        else:
            yield decoded


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
    for image_id in ids:
        seen[image_id] = seen.get(image_id, 0) + 1
        unique.append(image_id if seen[image_id] == 1 else f"{image_id}-{seen[image_id]}")
    return unique
