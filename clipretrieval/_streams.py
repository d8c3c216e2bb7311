"""One stream of encoded batches, whatever the encoder and the source."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from clipretrieval.encoding.base import EncodedBatch, Encoder
from clipretrieval.errors import DimensionMismatchError, InvalidInputError
from clipretrieval.images import SkippedImage, iter_images
from clipretrieval.types import FloatArray

__all__ = ["image_batches", "vector_batches"]

_KEY = "vectors"
_BATCH = 64
_ROWS = 4096


def image_batches(
    encoder: Encoder,
    images: Any,
    labels: Any = None,
    *,
    on_error: str = "raise",
    skipped: list[SkippedImage] | None = None,
) -> Iterator[tuple[EncodedBatch, FloatArray]]:
    """Encode a source of pictures with any encoder.

    Parameters
    ----------
    encoder : Encoder
        One with a ``stream`` method reads its own pictures; any other gets lists of RGB pictures.
    images, labels
        Whatever `clipretrieval.images.iter_images` takes.
    on_error : {"raise", "skip"}
    skipped : list, optional

    Yields
    ------
    batch : EncodedBatch
    vectors : ndarray of float32, shape (n, dim)
    """
    stream = getattr(encoder, "stream", None)
    if callable(stream):
        for batch in stream(images, labels, on_error=on_error, skipped=skipped):
            yield batch, _checked(next(iter(batch.vectors.values())), batch, encoder)
        return
    source = iter_images(images, labels, on_error=on_error, skipped=skipped)
    while True:
        started = time.perf_counter()
        items = list(islice(source, _BATCH))
        if not items:
            return
        decoded = time.perf_counter()
        given = encoder.encode([item.image for item in items])
        batch = EncodedBatch(
            ids=[item.id for item in items],
            vectors={_KEY: given},
            labels=[item.label for item in items],
            sources=[item.source for item in items],
            indices=[item.index for item in items],
            seconds={"decode": decoded - started, "encode": time.perf_counter() - decoded},
        )
        yield batch, _checked(given, batch, encoder)


def vector_batches(vectors: FloatArray, labels: Any = None) -> Iterator[tuple[EncodedBatch, FloatArray]]:
    """Cut vectors that need no encoding into batches; a row's id is a hash of its bytes.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, dim)
    labels : ndarray, shape (n,), optional
    """
    for start in range(0, len(vectors), _ROWS):
        rows = np.ascontiguousarray(vectors[start : start + _ROWS])
        given = [None] * len(rows) if labels is None else list(labels[start : start + _ROWS])
        batch = EncodedBatch(
            ids=[hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows],
            vectors={_KEY: rows},
            labels=given,
            sources=[None] * len(rows),
            indices=list(range(start, start + len(rows))),
        )
        yield batch, rows


def _checked(given: Any, batch: EncodedBatch, encoder: Encoder) -> FloatArray:
    """Return an encoder's vectors as our own float32 copy: it may use its buffer again."""
    name = f"{type(encoder).__name__}.encode"
    try:
        found = np.asarray(given)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{name} returned what is no array: {str(error).splitlines()[0]}") from error
    if found.dtype.kind not in "fiu":
        raise InvalidInputError(f"{name} returned {found.dtype}; expected real numbers, float32 at best")
    if found.ndim != 2 or len(found) != len(batch):
        raise InvalidInputError(
            f"{name} returned shape {found.shape} for {len(batch)} images; expected "
            f"({len(batch)}, {encoder.dim})"
        )
    if found.shape[1] != encoder.dim:
        raise DimensionMismatchError(
            f"{name} returned {found.shape[1]} dimensions, but the encoder's dim is {encoder.dim}"
        )
    with np.errstate(over="ignore"):
        vectors: FloatArray = np.array(found, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        row = int(broken[0])
        which = batch.sources[row] or f"number {batch.indices[row]} (counted from 0)"
        raise InvalidInputError(f"{name} returned NaN or infinite values for image {which}")
    return vectors
