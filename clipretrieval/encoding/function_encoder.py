"""Any function from images to vectors, as an encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from clipretrieval._util.checks import check_int, check_text, shown
from clipretrieval._util.foreign import as_array
from clipretrieval._util.forks import ForkLock
from clipretrieval._util.progress import Progress
from clipretrieval._util.repr import safe_repr
from clipretrieval.encoding.base import EncodedBatch, KnownIds, select_images
from clipretrieval.encoding.collecting import collect_vectors
from clipretrieval.encoding.image_transformer import ImageTransformer
from clipretrieval.encoding.pipeline import MOST_DECODERS, checked_options
from clipretrieval.encoding.streams import VectorCheck, item_batches
from clipretrieval.encoding.workers import side_by_side, usable_cores
from clipretrieval.errors import ImageDecodeError, InvalidInputError
from clipretrieval.images.decoding import (
    MAX_PIXELS,
    DecodedImage,
    RawImage,
    check_max_pixels,
    decode,
    image_name,
)
from clipretrieval.images.sources import iter_raw
from clipretrieval.images.stream import SkippedImage
from clipretrieval.types import FloatArray

__all__ = ["FunctionEncoder"]

_GRAY = 224
"""Side of the gray image whose vector tells the dimension, in pixels."""


class FunctionEncoder(ImageTransformer):
    """A function from images to vectors, as an encoder with one stage.

    Images are decoded ahead, in threads, while the function runs. It is called by one thread at a time.

    Parameters
    ----------
    function : callable
        Given a list of RGB `PIL.Image.Image`, at least one and at most `batch_size`, it returns their vectors
        in that order: an array or a tensor of real numbers, shape (n, dim), or a sequence of rows. An
        image's vector must depend on that image alone.
    name : str
        What the function is called. It is the stage's name in reports, and a part of the fingerprint.
    version : str or int
        Another one whenever the function gives other vectors than it did: an index that was filled under one
        version is refused under every other.
    dim : int, optional
        The vectors' dimension. When left out, the function tells it by the vector of a gray image at its
        first use.
    encode_text : callable, optional
        Given a list of str, it returns vectors that lie in one space with those of images, as of CLIP, for
        `~clipretrieval.RetrievalClassifier.search_text`.
    batch_size : int
        Images for one call, at least 1.
    max_pixels : int or None, default 75,000,000
        The most pixels (width × height) that an image may have; None for no bound.

    Raises
    ------
    InvalidInputError
        If an argument is not one of the above.

    Notes
    -----
    `save` of a classifier keeps name, version and dimension, and `load` has to be given the encoder again.
    An encoder can be pickled if its function can: one at the top of a module, but no lambda.

    Examples
    --------
    >>> import numpy as np
    >>> from PIL import Image
    >>> from clipretrieval import FunctionEncoder
    >>> def mean_color(images):
    ...     return [np.asarray(image).mean(axis=(0, 1)) / 255 for image in images]
    >>> encoder = FunctionEncoder(mean_color, name="mean-color", version=1)
    >>> encoder.encode(Image.new("RGB", (8, 8), "red")).tolist()
    [[1.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        function: Callable[[list[Image.Image]], Any],
        *,
        name: str,
        version: str | int,
        dim: int | None = None,
        encode_text: Callable[[list[str]], Any] | None = None,
        batch_size: int = 64,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        if not callable(function) or isinstance(function, type):
            raise InvalidInputError(
                "function must be a function of a list of PIL images that returns their vectors; got "
                f"{shown(function)}"
            )
        if encode_text is not None and (not callable(encode_text) or isinstance(encode_text, type)):
            raise InvalidInputError(
                f"encode_text must be a function of a list of str, or None; got {shown(encode_text)}"
            )
        self.function = function
        self.name = check_text(name, "name")
        self.version = check_text(version, "version") if isinstance(version, str) else _number(version)
        self.encode_text = encode_text
        self.batch_size = check_int(batch_size, "batch_size")
        self.max_pixels = check_max_pixels(max_pixels)
        self._given = {"dim": dim}
        self._dim = None if dim is None else check_int(dim, "dim")
        self._lock = ForkLock()

    @property
    def model(self) -> str:
        """What reports call the model: `name`, too."""
        return self.name

    @property
    def stage(self) -> str:
        """The name of the only stage: `name`."""
        return self.name

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""
        if self._dim is None:
            gray = Image.new("RGB", (_GRAY, _GRAY), (128, 128, 128))
            try:
                shape = as_array(self._call([gray]), f"what {self._spoken} returned").shape
            except InvalidInputError:
                raise
            except Exception as error:
                raise InvalidInputError(
                    f"{self._spoken} raised {_told(error)} for the gray image whose vector is to tell the "
                    "dimension; mend it, or pass dim="
                ) from error
            if len(shape) != 2 or shape[0] != 1 or not shape[1]:
                raise InvalidInputError(
                    f"{self._spoken} returned shape {shape} for a list of one image; it must return "
                    "(1, dim), a row for each image"
                )
            self._dim = int(shape[1])
        return self._dim

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What an index is known by: the function's name, its version, and the dimension."""
        return {"encoder": "function", "name": self.name, "version": self.version, "dim": self.dim}

    def encode(
        self, images: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> FloatArray:
        """Encode images; see `StagedEncoder.encode`.

        Returns
        -------
        ndarray of float32, shape (n, dim)

        Raises
        ------
        ImageDecodeError
            If an image cannot be decoded.
        InvalidInputError
            If the function raises, or returns NaN or infinite values, for an image, which the message names;
            ``on_error="skip"`` skips it. If it returns anything but one vector of dimension `dim` for each.
        """
        found = collect_vectors(images, (self.stage,), self._encode, on_error=on_error, progress=progress)
        return found[self.stage]

    def stream(
        self,
        images: Any,
        labels: Any = None,
        *,
        stages: tuple[str, ...] | None = None,
        on_error: str = "raise",
        skipped: list[SkippedImage] | None = None,
        known: KnownIds | None = None,
        ahead: int | None = None,
    ) -> Iterator[EncodedBatch]:
        """Yield encoded batches in the order of the source; see `StagedEncoder.stream`.

        `stages` can only be this encoder's own. Errors are those of `encode`.
        """
        if stages is not None and list(stages) != [self.stage]:
            raise InvalidInputError(f"{self._spoken} has one stage, {self.stage!r}; got {shown(stages)}")
        options = checked_options(on_error, skipped, known, ahead)
        return self._encode(iter_raw(images, labels), **options)

    def _encode(
        self,
        raws: Iterator[RawImage],
        *,
        on_error: str,
        skipped: list[SkippedImage] | None,
        known: KnownIds | None = None,
        ahead: int | None = None,
    ) -> Iterator[EncodedBatch]:
        check = VectorCheck(self, self._spoken)
        passed_over = list[SkippedImage]() if skipped is None else skipped
        begun = len(passed_over)
        most = self.batch_size if ahead is None else min(self.batch_size, ahead)
        source = _decoded_ahead(raws, on_error, passed_over, self.max_pixels)
        for items, batch in item_batches(source, most, known):
            started = time.perf_counter()
            vectors, faults = self._vectors(items, check, every=on_error == "skip")
            batch.seconds["encode"] = time.perf_counter() - started
            good = [row for row in range(len(items)) if row not in faults]
            if faults and on_error == "raise":
                good = list(range(min(faults)))  # what came before is worth keeping
            batch = replace(batch, vectors={self.stage: vectors})
            if len(good) or batch.known:
                yield select_images(batch, good)
            if faults and on_error == "raise":
                reason, cause = faults[min(faults)]
                raise InvalidInputError(
                    f"{reason}. Leave the image out, or pass on_error='skip' to skip it"
                ) from cause
            if faults:
                passed_over += [
                    SkippedImage(items[row].index, items[row].source, reason)
                    for row, (reason, _) in faults.items()
                ]
                passed_over[begun:] = sorted(passed_over[begun:], key=lambda item: item.index)

    def _vectors(
        self, items: list[DecodedImage], check: VectorCheck, *, every: bool
    ) -> tuple[FloatArray, dict[int, tuple[str, Exception | None]]]:
        """Return the vectors of some images, and, by its row, why one has none, `every` one or the first."""
        vectors = np.zeros((len(items), self.dim), dtype=np.float32)
        faults: dict[int, tuple[str, Exception | None]] = {}
        if not items:
            return vectors, faults
        names = [image_name(item.source, item.index) for item in items]
        try:
            given = self._call([item.image for item in items])
        except Exception as whole:
            for row, item in enumerate(items):  # whose fault it is
                try:
                    given = whole if len(items) == 1 else self._call([item.image])
                except Exception as error:  # noqa: BLE001  told below
                    given = error
                if isinstance(given, Exception):
                    faults[row] = f"{self._spoken} raised {_told(given)} for {names[row]}", given
                    if not every:
                        break
                else:
                    vectors[row] = check(given, 1)[0]
            if not faults:
                raise InvalidInputError(
                    f"{self._spoken} raised {_told(whole)} for {len(items)} images together, the first of "
                    f"them {names[0]}, and for none of them alone; pass a smaller batch_size, or mend it"
                ) from whole
        else:
            vectors = check(given, len(items))
        for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
            faults.setdefault(row, (f"{self._spoken} returned NaN or infinite values for {names[row]}", None))
        return vectors, dict(sorted(faults.items()))

    def _call(self, images: list[Image.Image]) -> Any:
        with self._lock.current:
            return self.function(images)

    @property
    def _spoken(self) -> str:
        return f"the function {self.name!r}"

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and "_lock" in vars(self):
            raise AttributeError(f"a FunctionEncoder never changes; make a new one with another {name}")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=ForkLock())

    @safe_repr
    def __repr__(self) -> str:
        dim = "" if self._dim is None else f", dim={self._dim}"
        return f"FunctionEncoder(name={self.name!r}, version={self.version!r}{dim})"


def _number(version: Any) -> int:
    try:
        return check_int(version, "version", least=0)
    except InvalidInputError as error:
        raise InvalidInputError(f"version must be a str, or a whole number; got {shown(version)}") from error


def _told(error: Exception) -> str:
    """Return an exception's type and message in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _decoded_ahead(
    raws: Iterator[RawImage], on_error: str, skipped: list[SkippedImage], max_pixels: int | None
) -> Iterator[DecodedImage]:
    """Decode images in threads, in order; those that cannot be decoded are raised or skipped."""
    work = partial(_decoded, max_pixels=max_pixels)
    workers = min(usable_cores(), MOST_DECODERS)
    for raw, found in side_by_side(work, raws, workers, None, alone=nullcontext):
        if isinstance(found, DecodedImage):
            yield found
        elif on_error == "raise":
            raise found
        else:
            skipped.append(SkippedImage(raw.index, raw.source, str(found)))


def _decoded(raw: RawImage, *, max_pixels: int | None) -> tuple[RawImage, DecodedImage | ImageDecodeError]:
    try:
        return raw, decode(raw, max_pixels=max_pixels)
    except ImageDecodeError as error:
        return raw, error
