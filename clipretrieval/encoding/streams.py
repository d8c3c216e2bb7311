"""One stream of encoded batches, whatever the encoder and the source."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np

from clipretrieval._util.foreign import as_array
from clipretrieval._util.rounding import warn_of_rounding
from clipretrieval._util.timing import Timing
from clipretrieval.encoding.base import EncodedBatch, Encoder, KnownIds, KnownImage, join_batches
from clipretrieval.errors import DimensionMismatchError, InvalidInputError
from clipretrieval.images.decoding import MAX_PIXELS, DecodedImage
from clipretrieval.images.stream import SkippedImage, iter_images
from clipretrieval.types import FloatArray

__all__ = ["VECTORS", "VectorCheck", "gather", "image_batches", "item_batches", "vector_batches"]

VECTORS = "vectors"
"""Under which name a batch of one kind of vectors holds them."""
_BATCH = 64
_MOST_PIXELS = 2**26
"""Of the images of a batch, at four bytes each; one image may go beyond it."""
_ROWS = 4096


def image_batches(
    encoder: Encoder,
    images: Any,
    labels: Any = None,
    *,
    on_error: str = "raise",
    skipped: list[SkippedImage] | None = None,
    known: KnownIds | None = None,
    ahead: int | None = None,
) -> Iterator[EncodedBatch]:
    """Encode a source of images with any encoder.

    Parameters
    ----------
    encoder : Encoder
        One with a ``stream`` method reads its own images; any other gets lists of RGB images, of as
        many pixels as its attribute ``max_pixels`` allows, if it has one.
    images, labels
        Whatever `clipretrieval.images.iter_images` takes.
    on_error, skipped
        As for `iter_images`.
    known : callable, optional
        Tells which images need no encoding. An encoder whose ``stream`` takes no `known` encodes all.
    ahead : int, optional
        The most images that are encoded before they are asked for, if the encoder's ``stream`` takes it.

    Yields
    ------
    EncodedBatch
        With the vectors, under the name `VECTORS`, as the encoder made them: they may not be finite.
    """
    check = VectorCheck(encoder, f"{type(encoder).__name__}.encode")
    stream = getattr(encoder, "stream", None)
    if callable(stream):
        wanted = {name: value for name, value in (("known", known), ("ahead", ahead)) if value is not None}
        asked = {name: value for name, value in wanted.items() if name in signature(stream).parameters}
        for batch in stream(images, labels, on_error=on_error, skipped=skipped, **asked):
            given = next(iter(batch.vectors.values())) if batch.ids else _none_of(encoder)
            yield replace(batch, vectors={VECTORS: check(given, len(batch))})
        return
    bound = getattr(encoder, "max_pixels", MAX_PIXELS)
    source = iter_images(images, labels, on_error=on_error, skipped=skipped, max_pixels=bound)
    most = _BATCH if ahead is None else max(1, min(_BATCH, ahead))
    for new, batch in item_batches(source, most, known):
        started = time.perf_counter()
        given = encoder.encode([item.image for item in new]) if new else _none_of(encoder)
        seconds = {**batch.seconds, "encode": time.perf_counter() - started}
        yield replace(batch, vectors={VECTORS: check(given, len(batch))}, seconds=seconds)


def item_batches(
    source: Iterator[DecodedImage], most: int, known: KnownIds | None
) -> Iterator[tuple[list[DecodedImage], EncodedBatch]]:
    """Cut decoded images into batches, fewer of large ones together; a failure of the source is raised last.

    Parameters
    ----------
    source : iterator of DecodedImage
    most : int
        Images of a batch.
    known : callable, optional
        Tells which images need no encoding.

    Yields
    ------
    new : list of DecodedImage
        Those that are to be encoded.
    batch : EncodedBatch
        Of these and of what is known, without vectors.
    """
    ended = False
    while not ended:
        started = time.perf_counter()
        items, failure, ended = _take(source, most)
        have = set(known([item.id for item in items])) if known is not None and items else set()
        new = [item for item in items if item.id not in have]
        batch = EncodedBatch(
            ids=[item.id for item in new],
            vectors={},
            labels=[item.label for item in new],
            sources=[item.source for item in new],
            indices=[item.index for item in new],
            seconds={"decode": time.perf_counter() - started},
            known=[
                KnownImage(item.id, item.label, item.source, item.index) for item in items if item.id in have
            ],
        )
        if items:
            yield new, batch
        if failure is not None:
            raise failure


def _take(source: Iterator[DecodedImage], most: int) -> tuple[list[DecodedImage], Exception | None, bool]:
    """Read some images, fewer of large ones; tell what the reading failed with, and whether it ended."""
    items: list[DecodedImage] = []
    pixels = 0
    try:
        for item in source:
            items.append(item)
            pixels += item.image.width * item.image.height
            if len(items) == most or pixels >= _MOST_PIXELS:
                return items, None, False
    except Exception as error:  # noqa: BLE001  raised by the caller, behind what came before it
        return items, error, True
    return items, None, True


def _none_of(encoder: Encoder) -> FloatArray:
    return np.empty((0, encoder.dim), dtype=np.float32)


def vector_batches(vectors: FloatArray, labels: Any = None) -> Iterator[EncodedBatch]:
    """Cut vectors that need no encoding into batches; a vector's id is a hash of its bytes."""
    for start in range(0, len(vectors), _ROWS):
        rows = np.ascontiguousarray(vectors[start : start + _ROWS])
        given = [None] * len(rows) if labels is None else list(labels[start : start + _ROWS])
        yield EncodedBatch(
            ids=[hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows],
            vectors={VECTORS: rows},
            labels=given,
            sources=[None] * len(rows),
            indices=list(range(start, start + len(rows))),
        )


def gather(
    batches: Iterable[EncodedBatch],
    size: int,
    timing: Timing,
    tell: Callable[[int], None] | None = None,
    keep: Callable[[], bool] = lambda: True,
) -> Iterator[EncodedBatch]:
    """Join small batches until `size` images are together; count the time they took to come, and `tell`.

    What came before a failure or Ctrl-C is still yielded, if `keep` says so.
    """
    waiting: list[EncodedBatch] = []
    held = 0

    def joined() -> EncodedBatch:
        return replace(join_batches(waiting), seconds={})  # these are counted

    try:
        for batch in batches:
            for part, seconds in batch.seconds.items():
                timing.add(part, seconds, len(batch))
            waiting.append(batch)
            came = len(batch) + len(batch.known)
            held += came
            if tell is not None:
                tell(came)
            if held >= size:
                yield joined()
                waiting, held = [], 0
    except (Exception, KeyboardInterrupt):
        if waiting and keep():
            yield joined()
        raise
    if waiting:
        yield joined()


class VectorCheck:
    """Checks what an encoder returns for each batch, and warns once of what float32 loses of it.

    Parameters
    ----------
    encoder : Encoder
    name : str
        What errors say has returned it.
    """

    def __init__(self, encoder: Encoder, name: str) -> None:
        self._encoder, self._name = encoder, name
        self._warned = False

    def __call__(self, given: Any, n: int) -> FloatArray:
        """Return the vectors of `n` images as our own float32 copy: the encoder may use its buffer again."""
        dim, name = self._encoder.dim, self._name
        found = as_array(given, f"what {name} returned")
        if found.dtype.kind not in "fiu":
            raise InvalidInputError(f"{name} returned {found.dtype}; expected real numbers, float32 at best")
        if found.ndim != 2 or len(found) != n:
            raise InvalidInputError(
                f"{name} returned shape {found.shape} for {n} images; expected ({n}, {dim})"
            )
        if found.shape[1] != dim:
            raise DimensionMismatchError(
                f"{name} returned {found.shape[1]} dimensions, but the encoder's dim is {dim}"
            )
        with np.errstate(over="ignore"):
            vectors: FloatArray = np.array(found, dtype=np.float32)
        self._warned = self._warned or warn_of_rounding(found, vectors, f"the vectors that {name} returned")
        return vectors
