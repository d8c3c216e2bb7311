"""Encode images from exit to exit, and stop each one where the caller says so."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from clipretrieval.encoding.base import EncodedBatch, encoding_to, join_batches, select_images
from clipretrieval.encoding.engine.engine import Engine
from clipretrieval.encoding.joint_passes import JointPasses
from clipretrieval.encoding.pipeline import MOST_DECODERS, Chunk, flatten_pixels, prepare_chunk
from clipretrieval.encoding.preparation import Preparation
from clipretrieval.encoding.stage_output import StageOutput, StagePart, distinct_parts
from clipretrieval.encoding.workers import in_chunks, side_by_side, torch_alone, usable_cores
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.decoding import RawImage
from clipretrieval.images.stream import SkippedImage
from clipretrieval.types import FloatArray

__all__ = ["EarlyExits", "StayOn"]

StayOn: TypeAlias = Callable[[int, EncodedBatch], npt.NDArray[np.bool_]]
"""Called with the number of an exit and images that are there, with their vectors: which of them go on."""

DECIDED = 256
"""Images that are decided together: an exact search of fewer takes up to four times as long for each."""
MOST_BYTES = 2**26
"""Of the activations of images that wait at an exit to be decided."""
MOST_UNFINISHED = 4096
"""Images behind one that waits for company, after which it goes on without."""


@dataclass(eq=False)
class _Image:
    """What is known of an image, until it is handed over in its turn."""

    id: str
    label: object
    source: str | None
    index: int
    left: bool = False


@dataclass(eq=False)
class _Group:
    """Some images at one exit: what is known of them, their activations, and the vectors on their way."""

    batch: EncodedBatch
    x: torch.Tensor
    parts: dict[StagePart, FloatArray]

    def __len__(self) -> int:
        return len(self.batch)


@dataclass(frozen=True, eq=False)
class _Stayers:
    """Images of a group that go on; their activations are copied once, when they are packed."""

    group: _Group
    rows: npt.NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, first: int) -> tuple[_Stayers, _Stayers]:
        """Return the first few, and the others."""
        return _Stayers(self.group, self.rows[:first]), _Stayers(self.group, self.rows[first:])


@dataclass(frozen=True, eq=False)
class _Start:
    """Images that are to be prepared, if they are not yet, and encoded up to the first exit."""

    given: list[RawImage] | Chunk


@dataclass(frozen=True, eq=False)
class _Advance:
    """Images that go on from one exit to the next."""

    place: int
    stayers: list[_Stayers]


@dataclass(frozen=True, eq=False)
class _Arrived:
    """What a task has made: images at an exit, and what was skipped on the way."""

    place: int
    group: _Group | None
    skipped: list[SkippedImage] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Wait:
    """There is nothing to do until another task is done."""


_Task: TypeAlias = _Start | _Advance | _Wait


class EarlyExits:
    """One pass over a source of images, in which each goes on only as far as it has to.

    Images that go on are packed together again, so that inner batches stay full. Everything is done in an
    order that does not depend on time, so the same source is packed in the same way. Only a bounded number of
    activations is held.

    Parameters
    ----------
    outputs : sequence of StageOutput
        Of the exits, each deeper than the one before.
    engine : Engine
    preparation : Preparation
    stay_on : callable
        Asked of all images at each exit; at the last one, its answer is of no consequence.
    batch_size : int
        Images that a batch has at least, the last one aside.
    on_error : {"raise", "skip"}
    skipped : list of SkippedImage
        Grows as images come.
    identify : bool
        Whether content ids are wanted.
    max_pixels : int or None
        See `clipretrieval.images.decode`.
    joint : JointPasses or None
        Where the encoder runs on a CPU.
    """

    def __init__(
        self,
        outputs: Sequence[StageOutput],
        engine: Engine,
        preparation: Preparation,
        stay_on: StayOn,
        *,
        batch_size: int,
        on_error: str,
        skipped: list[SkippedImage],
        identify: bool,
        max_pixels: int | None,
        joint: JointPasses | None,
    ) -> None:
        self._joint = joint
        self._single = False  # a chunk at most, so no other pass of these images runs beside
        self._outputs, self._engine, self._preparation = outputs, engine, preparation
        self._stay_on, self._batch_size, self._on_error = stay_on, batch_size, on_error
        self._skipped, self._identify, self._max_pixels = skipped, identify, max_pixels
        self._new = _parts_by_exit(outputs)
        self._inner = min(engine.plan.inner_batch, batch_size)
        self._undecided: list[list[_Group]] = [[] for _ in outputs]
        self._staying: list[deque[_Stayers]] = [deque() for _ in outputs[1:]]
        self._on_their_way = [0] * len(outputs)  # tasks that are not done yet, by the exit they lead to
        self._chunks: Iterator[list[RawImage] | Chunk] = iter(())
        self._exhausted = False
        self._line: deque[_Image] = deque()
        self._known: dict[int, _Image] = {}  # those that have not left yet
        self._seconds: dict[str, float] = {}

    def run(self, raws: Iterator[RawImage]) -> Iterator[EncodedBatch]:
        """Yield the images that have left, without vectors, in the order of the source."""
        plan = self._engine.plan
        chunks = in_chunks(raws, self._inner)
        if plan.device == "cpu":
            first = list(itertools.islice(chunks, 2))
            self._chunks = itertools.chain(first, chunks)
            if len(first) < 2 and not plan.compiled:
                self._single = True
                yield from self._collect(map(self._work, self._tasks()))
                return
            threads = (plan.streams, plan.threads)
            yield from self._collect(side_by_side(self._work, self._tasks(), *threads, inline=False))
        else:
            workers = min(usable_cores(), MOST_DECODERS)
            self._chunks = side_by_side(self._prepare, chunks, workers, None)
            yield from self._collect(map(self._work, self._tasks()))

    def _collect(self, results: Iterator[_Arrived | None]) -> Iterator[EncodedBatch]:
        for result in results:
            if result is None:
                continue
            self._on_their_way[result.place] -= 1
            self._take_in(result)
            yield from self._in_order(self._batch_size)
        yield from self._in_order(1)

    def _tasks(self) -> Iterator[_Task]:
        """Yield what is to be done next, the deepest first: it frees the most memory."""
        while True:
            for place in reversed(range(len(self._staying))):
                waiting = sum(map(len, self._staying[place]))
                if waiting >= self._inner or (waiting and self._is_closed(place)):
                    yield self._advance(place)
                    break
            else:
                chunk = None if self._exhausted else next(self._chunks, None)
                self._exhausted = chunk is None
                if chunk is not None:
                    self._on_their_way[0] += 1
                    yield _Start(chunk)
                elif any(self._on_their_way):
                    yield _Wait()
                elif not self._decide_rest():
                    return

    def _advance(self, place: int) -> _Advance:
        """Choose an inner batch of those that stay."""
        waiting, chosen, held = self._staying[place], list[_Stayers](), 0
        while waiting and held < self._inner:
            chosen.append(waiting.popleft())
            held += len(chosen[-1])
        if held > self._inner:
            last = chosen.pop()
            some, others = last.cut(len(last) - (held - self._inner))
            chosen.append(some)
            waiting.appendleft(others)
        self._on_their_way[place + 1] += 1
        return _Advance(place + 1, chosen)

    def _is_closed(self, place: int) -> bool:
        """Tell whether no image will join those that stay at an exit, or they have waited long enough."""
        if len(self._line) > MOST_UNFINISHED:
            return True
        before = range(place + 1)
        return (
            self._exhausted
            and not any(self._on_their_way[each] or self._undecided[each] for each in before)
            and not any(self._staying[each] for each in range(place))
        )

    def _decide_rest(self) -> bool:
        """Decide images that wait for company at the first exit where there are any."""
        for place, waiting in enumerate(self._undecided):
            if waiting:
                self._decide(place)
                return True
        return False

    def _work(self, task: _Task) -> _Arrived | None:
        """Do a task, in any thread."""
        if isinstance(task, _Wait):
            return None
        if isinstance(task, _Advance):
            return self._go_on(task.place, _packed(task.stayers), {})
        started = time.perf_counter()
        chunk = self._prepare(task.given) if isinstance(task.given, list) else task.given
        seconds = {"decode": self._share(started)}
        if not chunk.squares:
            return _Arrived(0, None, chunk.skipped, seconds)
        parts: dict[StagePart, FloatArray] = {}
        if "pixel" in chunk.squares:
            flat = flatten_pixels(chunk.squares["pixel"])
            parts = {part: flat for part in distinct_parts(self._outputs) if part.stage.depth == 0}
        x = self._engine.normalize(torch.from_numpy(chunk.squares["clip"]))
        return replace(self._go_on(0, _Group(chunk.batch, x, parts), seconds), skipped=chunk.skipped)

    def _prepare(self, raws: list[RawImage]) -> Chunk:
        stages = [part.stage for part in distinct_parts(self._outputs)]
        return prepare_chunk(
            raws, stages, self._preparation, self._on_error, self._identify, max_pixels=self._max_pixels
        )

    def _go_on(self, place: int, group: _Group, seconds: dict[str, float]) -> _Arrived:
        """Run images to an exit."""
        started = time.perf_counter()
        done = self._outputs[place - 1].depth if place else 0
        x = group.x.contiguous(memory_format=torch.channels_last) if group.x.ndim == 4 else group.x
        if self._joint is not None and self._single:
            new = self._new[place]
            work = partial(self._engine.run_on_each, done=done, parts=new)
            x, found = self._joint.run((done, *new), x, len(x), work)
        else:
            x, found = self._engine.run_on(x, done, self._new[place])
        parts = {**group.parts, **found}
        vectors = {self._outputs[place].name: self._outputs[place].join(parts)}
        arrived = _Group(replace(group.batch, vectors=vectors), x, parts)
        return _Arrived(place, arrived, seconds={**seconds, encoding_to(place): self._share(started)})

    def _share(self, started: float) -> float:
        """Return this worker's share of the seconds since: parts add up to what the clock shows."""
        alone = threading.current_thread() is threading.main_thread()
        return (time.perf_counter() - started) / (1 if alone else self._engine.plan.streams)

    def _take_in(self, arrived: _Arrived) -> None:
        """Take images in at their exit, and decide when enough of them are there."""
        for part, seconds in arrived.seconds.items():
            self._seconds[part] = self._seconds.get(part, 0.0) + seconds
        self._skipped += arrived.skipped
        group, place = arrived.group, arrived.place
        if group is None:
            return
        if place == 0:
            batch = group.batch
            for each in zip(batch.ids, batch.labels, batch.sources, batch.indices, strict=True):
                image = _Image(*each)
                self._line.append(image)
                self._known[image.index] = image
        waiting = self._undecided[place]
        waiting.append(group)
        size = max(1, group.x[0].numel() * group.x.element_size())
        enough = min(DECIDED, max(self._inner, MOST_BYTES // size))
        if sum(map(len, waiting)) >= enough:
            self._decide(place)
        if len(self._line) > MOST_UNFINISHED:  # perhaps one waits elsewhere, for company that never comes
            while self._decide_rest():
                pass

    def _decide(self, place: int) -> None:
        """Ask which images at an exit go on; the others leave."""
        groups, self._undecided[place] = self._undecided[place], []
        batch = join_batches([group.batch for group in groups])
        stay = np.array(self._stay_on(place, batch))
        if stay.dtype != bool or stay.shape != (len(batch),):
            raise InvalidInputError(
                f"stay_on must return a mask of bool, shape ({len(batch)},), for {len(batch)} images; got an "
                f"array of {stay.dtype}, shape {stay.shape}"
            )
        if place == len(self._staying):
            stay[:] = False
        for row in np.flatnonzero(~stay):
            self._known.pop(batch.indices[row]).left = True
        first = 0
        for group in groups:
            rows = np.flatnonzero(stay[first : first + len(group)])
            first += len(group)
            if len(rows):
                self._staying[place].append(_Stayers(group, rows))

    def _in_order(self, least: int) -> Iterator[EncodedBatch]:
        """Yield the images at the head of the line that have left, if there are enough."""
        ready = sum(1 for _ in itertools.takewhile(lambda image: image.left, self._line))
        if ready < least:
            return
        images = [self._line.popleft() for _ in range(ready)]
        seconds, self._seconds = self._seconds, {}
        yield EncodedBatch(
            ids=[image.id for image in images],
            vectors={},
            labels=[image.label for image in images],
            sources=[image.source for image in images],
            indices=[image.index for image in images],
            seconds=seconds,
        )


def _parts_by_exit(outputs: Sequence[StageOutput]) -> list[list[StagePart]]:
    """Return which parts are computed on the way to each exit: those that it or a later one needs."""
    parts = [part for part in distinct_parts(outputs) if part.stage.depth > 0]
    depths = [0, *(output.depth for output in outputs)]
    return [
        [part for part in parts if start < part.stage.depth <= end]
        for start, end in itertools.pairwise(depths)
    ]


@torch_alone()
def _packed(stayers: Sequence[_Stayers]) -> _Group:
    """Make one group of some images: a copy, which the units may overwrite, unless it is one as it was."""
    first = stayers[0].group
    if len(stayers) == 1 and len(stayers[0]) == len(first):
        return first
    grid = first.x.ndim == 4
    shape = (sum(map(len, stayers)), *first.x.shape[1:])
    x = torch.empty(
        shape,
        dtype=first.x.dtype,
        device=first.x.device,
        memory_format=torch.channels_last if grid else torch.contiguous_format,
    )
    start = 0
    for each in stayers:
        source, part = each.group.x, x[start : start + len(each)]
        if grid:  # image by image, as channels come last in memory
            source, part = source.permute(0, 2, 3, 1), part.permute(0, 2, 3, 1)
        torch.index_select(source, 0, torch.from_numpy(each.rows).to(x.device), out=part)
        start += len(each)
    return _Group(
        join_batches([select_images(each.group.batch, each.rows.tolist()) for each in stayers]),
        x,
        {
            part: np.concatenate([each.group.parts[part][each.rows] for each in stayers])
            for part in first.parts
        },
    )
