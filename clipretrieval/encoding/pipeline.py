"""Decode ahead of the encoder, keep the order, hold only a few images at a time.

Images travel in *chunks* of the plan's inner batch. On a CPU the same worker decodes a chunk and encodes
it, one worker a core: nobody waits for anybody, and decoding costs what it costs and no more. For a GPU
or ONNX Runtime workers only decode, and the caller's thread feeds them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_int, check_list, shown
from clipretrieval.encoding.base import EncodedBatch, KnownIds, KnownImage, join_batches
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.preparation import Preparation, RgbImage, Squares
from clipretrieval.encoding.stage_output import StageOutput, StagePart, distinct_parts
from clipretrieval.encoding.stages import Stage
from clipretrieval.encoding.workers import SPARE_ITEMS, in_chunks, side_by_side, usable_cores
from clipretrieval.errors import ImageDecodeError, InvalidInputError
from clipretrieval.images.decoding import MAX_PIXELS, RawImage, decode, decode_pixels
from clipretrieval.images.rgb import pixel_size
from clipretrieval.images.stream import SkippedImage, check_on_error
from clipretrieval.types import FloatArray

if TYPE_CHECKING:
    from clipretrieval.encoding.engine.engine import Engine
    from clipretrieval.encoding.joint_passes import JointPasses

__all__ = ["MOST_DECODERS", "Chunk", "checked_options", "encode_source", "flatten_pixels", "prepare_chunk"]

MOST_DECODERS = 16
"""Threads that decode for a GPU: each holds a batch of images ready."""
_MOST_PIXELS = 2**24
"""Once images of so many pixels are decoded they are cut and given up; a pixel takes four bytes."""


class Graph(Protocol):
    """What computes vectors of squares: torch's `Engine`, or an exported encoder's `OnnxGraph`."""

    def run(self, squares: npt.NDArray[np.uint8], parts: Iterable[StagePart]) -> dict[StagePart, FloatArray]:
        """Compute the vectors of some parts of n squares, shape (n, size, size, 3), in one pass."""
        ...


@dataclass
class Chunk:
    """A few images on their way: what is known of them, and their squares until they are encoded."""

    batch: EncodedBatch = field(default_factory=lambda: EncodedBatch([], {}, [], [], []))
    skipped: list[SkippedImage] = field(default_factory=list)
    squares: Squares = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.batch) + len(self.batch.known)


def encode_source(
    raws: Iterator[RawImage],
    outputs: Sequence[StageOutput],
    preparation: Preparation,
    engine: Graph | None,
    plan: InferencePlan,
    *,
    joint: JointPasses | None,
    batch_size: int,
    on_error: str,
    skipped: list[SkippedImage] | None,
    identify: bool = True,
    known: KnownIds | None = None,
    ahead: int | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> Iterator[EncodedBatch]:
    """Encode a source of images in order.

    Parameters
    ----------
    raws : iterator of RawImage
        Read no further ahead than a few chunks.
    outputs : sequence of StageOutput
        What the batches hold the vectors of, by its name.
    engine : Graph or None
        None where only the ``pixel`` stage is wanted.
    joint : JointPasses or None
        Where the encoder runs on a CPU.
    batch_size : int
        Images that a batch has at least, the last one aside.
    on_error, skipped
        See `clipretrieval.images.iter_images`.
    identify : bool
        Whether content ids are wanted; hashing pixels takes a few per cent of the encoder's own time.
    known : callable, optional
        Tells which images are only decoded.
    ahead : int, optional
        The most images that are encoded, or being encoded, before they are asked for.
    max_pixels : int or None
        See `clipretrieval.images.decode`.
    """
    caller = threading.get_ident()
    stages = [part.stage for part in distinct_parts(outputs)]
    on_torch = engine is not None and plan.runs_torch
    workers = plan.streams if plan.encodes_in_workers else min(usable_cores(), MOST_DECODERS)

    def timed(part: str, work: Callable[[], Chunk]) -> Chunk:
        started = time.perf_counter()
        chunk = work()
        # Workers run side by side: a share each, so that the parts add up to what the clock shows.
        share = 1 if threading.get_ident() == caller else workers
        chunk.batch.seconds[part] = (time.perf_counter() - started) / share
        return chunk

    def prepare(part: list[RawImage]) -> Chunk:
        return timed(
            "decode",
            lambda: prepare_chunk(part, stages, preparation, on_error, identify, known, max_pixels),
        )

    def encode(chunk: Chunk) -> Chunk:
        single = joint if threading.get_ident() == caller else None
        return timed("encode", lambda: _encode_chunk(chunk, outputs, engine, single))

    if ahead is not None:
        batch_size = min(
            batch_size, max(1, ahead // (workers + SPARE_ITEMS if plan.encodes_in_workers else 1))
        )
    size = min(plan.inner_batch, batch_size)
    chunks, most = in_chunks(raws, size), None if ahead is None else max(1, ahead // size)
    if plan.encodes_in_workers:
        done: Iterator[Chunk] = side_by_side(
            lambda part: encode(prepare(part)),
            chunks,
            workers,
            plan.threads if on_torch else None,
            inline=not plan.compiled,
            most=most,
            alone=None if on_torch else nullcontext,
        )
    else:
        # Decoding needs nothing of torch, which may not even be installed.
        done = map(encode, side_by_side(prepare, chunks, workers, None, most=most, alone=nullcontext))
    yield from _in_batches(done, batch_size, skipped)


def checked_options(on_error: Any, skipped: Any, known: Any, ahead: Any) -> dict[str, Any]:
    """Return what an encoder's ``stream`` was asked for, as `encode_source` takes it.

    Raises
    ------
    InvalidInputError
        If a value is none that it takes.
    """
    check_on_error(on_error)
    check_list(skipped, "skipped")
    if known is not None and not callable(known):
        raise InvalidInputError(f"known must be a function of content ids, or None; got {shown(known)}")
    limit = None if ahead is None else check_int(ahead, "ahead")
    return {"on_error": on_error, "skipped": skipped, "known": known, "ahead": limit}


def prepare_chunk(
    raws: list[RawImage],
    stages: Sequence[Stage],
    preparation: Preparation,
    on_error: str,
    identify: bool = True,
    known: KnownIds | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> Chunk:
    """Decode a chunk and cut its squares; images that cannot be decoded are skipped or raised.

    Images that are `known` are decoded, for their ids, and not cut. Of large images only a few are in
    memory at once.
    """
    pixel = any(stage.depth == 0 for stage in stages)
    clip = any(stage.depth > 0 for stage in stages)
    chunk = Chunk()
    batch = chunk.batch
    parts: list[Squares] = []
    waiting: list[tuple[RawImage, RgbImage, str]] = []

    def cut() -> None:
        have = set(known([name for _, _, name in waiting])) if known is not None and waiting else set()
        images: list[RgbImage] = []
        for raw, image, name in waiting:
            if name in have:
                batch.known.append(KnownImage(name, raw.label, raw.source, raw.index))
                continue
            images.append(image)
            batch.ids.append(name)
            batch.labels.append(raw.label)
            batch.sources.append(raw.source)
            batch.indices.append(raw.index)
        if images:
            parts.append(preparation.batch(images, pixel=pixel, clip=clip))
        waiting.clear()

    held = 0
    for raw in raws:
        try:
            waiting.append((raw, *_decode_checked(raw, preparation, identify, max_pixels)))
        except ImageDecodeError as error:
            if on_error == "raise":
                raise
            chunk.skipped.append(SkippedImage(raw.index, raw.source, str(error)))
            continue
        width, height = pixel_size(waiting[-1][1])
        held += width * height
        if held >= _MOST_PIXELS:
            cut()
            held = 0
    cut()
    if parts:
        chunk.squares = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return chunk


def _decode_checked(
    raw: RawImage, preparation: Preparation, identify: bool, max_pixels: int | None
) -> tuple[RgbImage, str]:
    found: tuple[RgbImage, str] | None = decode_pixels(raw, identify=identify, max_pixels=max_pixels)
    if found is None:
        whole = decode(raw, max_pixels=max_pixels)
        found = (whole.image, whole.id)
    preparation.check(found[0], raw.source)
    return found


def _encode_chunk(
    chunk: Chunk, outputs: Sequence[StageOutput], engine: Graph | None, joint: JointPasses | None
) -> Chunk:
    if chunk.squares:
        parts = distinct_parts(outputs)
        deep = [part for part in parts if part.stage.depth > 0]
        vectors: dict[StagePart, FloatArray] = {}
        if "pixel" in chunk.squares:
            flat = flatten_pixels(chunk.squares["pixel"])
            vectors.update((part, flat) for part in parts if part.stage.depth == 0)
        if engine is not None and "clip" in chunk.squares:
            squares = chunk.squares["clip"]
            if joint is None:
                vectors.update(engine.run(squares, deep))
            else:
                work = partial(cast("Engine", engine).run_each, parts=deep)
                vectors.update(joint.run(tuple(deep), squares, len(squares), work))
        chunk.batch.vectors.update((output.name, output.join(vectors)) for output in outputs)
    chunk.squares = {}
    return chunk


def _in_batches(
    chunks: Iterator[Chunk], batch_size: int, skipped: list[SkippedImage] | None
) -> Iterator[EncodedBatch]:
    waiting: list[EncodedBatch] = []
    held = 0
    try:
        for chunk in chunks:
            if skipped is not None:
                skipped.extend(chunk.skipped)
            waiting.append(chunk.batch)
            held += len(chunk)
            if held >= batch_size:
                yield join_batches(waiting)
                waiting, held = [], 0
    except Exception:
        # What came before a failure is good, and may be worth keeping.
        if held:
            yield join_batches(waiting)
        raise
    if held:
        yield join_batches(waiting)


def flatten_pixels(squares: npt.NDArray[np.uint8]) -> FloatArray:
    """Scale to [0, 1] and flatten channel first, shape (n, 3072)."""
    flat = squares.transpose(0, 3, 1, 2).reshape(len(squares), -1)
    return flat.astype(np.float32) / np.float32(255)
