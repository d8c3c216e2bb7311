"""All vectors of a source of images, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from clipretrieval._util.progress import Progress, check_progress, image_counter, open_progress
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.sources import count_hint, iter_raw
from clipretrieval.images.stream import SkippedImage, check_on_error
from clipretrieval.images.tars import without_labels
from clipretrieval.types import FloatArray

__all__ = ["collect_vectors"]


def collect_vectors(
    images: Any,
    names: Iterable[str],
    encode: Callable[..., Iterator[EncodedBatch]],
    *,
    on_error: str,
    progress: Progress | bool | None,
) -> dict[str, FloatArray]:
    """Encode images to the end of their source.

    Parameters
    ----------
    images : image-like, sequence, iterator, dataset or folder
        Whatever `clipretrieval.images.iter_images` takes.
    names : iterable of str
        Those under which batches hold their vectors.
    encode : callable
        Called with an iterator of raw images, `on_error` and a list `skipped` that it fills.
    on_error : {"raise", "skip"}
        Under ``"skip"`` the row of an image that cannot be encoded is NaN, and a warning says how many are.
    progress : callable, bool or None
        See `clipretrieval.StagedEncoder.encode`.

    Returns
    -------
    dict of str to ndarray of float32, shape (n, dim)
    """
    check_on_error(on_error)
    check_progress(progress)
    total, places, skipped = count_hint(images), list[int](), list[SkippedImage]()
    with open_progress(progress, "encoding") as shown_to:
        tell = image_counter(shown_to, total, skipped)
        batches = encode(iter_raw(without_labels(images)), on_error=on_error, skipped=skipped)
        vectors = _collect(_counted(batches, places, tell), tuple(names), total)
    if not skipped:
        return vectors
    warn_caller(
        f"{len(skipped)} of {len(skipped) + len(places)} images could not be encoded, and their "
        f"vectors are NaN; the first: {skipped[0].reason}"
    )
    return {name: _spread(rows, places, skipped) for name, rows in vectors.items()}


def _counted(
    batches: Iterator[EncodedBatch], places: list[int], tell: Callable[[int], None]
) -> Iterator[EncodedBatch]:
    """Note where each image was in the source, and tell of it, on the way."""
    for batch in batches:
        places += batch.indices
        tell(len(batch))
        yield batch


def _collect(
    batches: Iterator[EncodedBatch], names: tuple[str, ...], count: int | None
) -> dict[str, FloatArray]:
    """Put vectors into one array per name as they come, so that none is held twice.

    More or fewer than `count` may come.
    """
    whole: dict[str, FloatArray] = {}
    filled = 0
    for batch in batches:
        end = filled + len(batch)
        for name in names:
            part = batch.vectors[name]
            if name not in whole:
                whole[name] = np.empty((max(count or 0, end), part.shape[1]), dtype=np.float32)
            elif end > len(whole[name]):
                # In place: the system moves pages of large arrays and does not copy them.
                whole[name].resize((end + end // 4, part.shape[1]), refcheck=False)
            whole[name][filled:end] = part
        filled = end
    if not filled:
        raise InvalidInputError("there are no images to encode; pass at least one")
    for rows in whole.values():
        rows.resize((filled, rows.shape[1]), refcheck=False)
    return whole


def _spread(rows: FloatArray, places: list[int], skipped: list[SkippedImage]) -> FloatArray:
    """Put rows in the places of their images, with NaN where one was skipped."""
    count = max(*places, *(item.index for item in skipped)) + 1
    whole: FloatArray = np.full((count, rows.shape[1]), np.nan, dtype=np.float32)
    whole[places] = rows
    return whole
