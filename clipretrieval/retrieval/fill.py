"""Read labelled images to their end into a store, which works beside the encoder."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType

from clipretrieval._util.progress import Progress, open_progress
from clipretrieval._util.timing import Timing
from clipretrieval.encoding.base import EncodedBatch, KnownIds
from clipretrieval.encoding.streams import gather
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.index_writer import IndexWriter
from clipretrieval.retrieval.inputs import FitSource, none_left

__all__ = ["fill_stores", "known_to_all", "store_images"]

CHUNK = 1024
"""Vectors that go into the store together."""
WAITING = 4
"""Chunks that wait for the store at most."""
SHARE = 20
"""Without an interval of the user's, a flush that took t seconds is followed by none for 20 t, …"""
PAUSE = 5.0
"""… nor for so many seconds."""


def store_images(
    writers: Sequence[IndexWriter],
    batches: Iterable[EncodedBatch],
    *,
    total: int | None,
    skipped: Sequence[SkippedImage],
    timing: Timing,
    progress: Progress,
    flush_every: int | None = None,
    chunk: int = CHUNK,
) -> None:
    """Put everything that a source yields into indexes, and flush them.

    What was encoded before a failure is stored and flushed.

    Parameters
    ----------
    writers : sequence of IndexWriter
    batches : iterable of EncodedBatch
        With the vectors that each writer takes.
    total : int or None
        Number of images, where it is known.
    skipped : sequence of SkippedImage
        Grows while batches come.
    timing : Timing
        Counts the seconds of ``"decode"``, ``"encode"``, ``"store"`` and ``"flush"``.
    progress : callable
    flush_every : int, optional
        See `RetrievalClassifier.fit`.
    chunk : int
        Images that go into the stores together, unless `flush_every` asks for fewer.

    Raises
    ------
    InvalidInputError
        If labels are missing or of mixed types.
    """
    size = chunk if flush_every is None else max(1, min(chunk, flush_every // 4))
    with _Storing(writers, timing, flush_every) as storing:

        def tell(images: int) -> None:
            storing.expect(images)
            progress(storing.arrived + len(skipped), total)

        def keep() -> bool:
            """Tell whether a failure may store what came before it: it must not cost what is to go."""
            return not any(writer.clearing for writer in writers)

        progress(0, total)
        try:
            for batch in gather(batches, size, timing, tell, keep):
                storing.put(batch)
            storing.finish()
        except BaseException as error:
            storing.finish()
            for writer in writers:
                writer.advise(error)
            raise


def fill_stores(
    writers: Sequence[IndexWriter],
    source: FitSource,
    *,
    timing: Timing,
    progress: Progress | bool | None,
    flush_every: int | None,
) -> None:
    """Put a source's images into indexes, and show it; see `store_images`.

    Raises
    ------
    InvalidInputError
        If no images are left, or as for `store_images`.
    """
    with open_progress(progress, "fitting") as shown:
        store_images(
            writers,
            source.open(known_to_all(writers)),
            total=source.total,
            skipped=source.skipped,
            timing=timing,
            progress=shown,
            flush_every=flush_every,
        )
    if not writers[-1].count:
        raise InvalidInputError(none_left("to fit on", source.skipped))


def known_to_all(writers: Sequence[IndexWriter]) -> KnownIds | None:
    """Return what tells which images need no encoding; None where all do."""
    if any(writer.fresh for writer in writers):
        return None
    return lambda ids: set.intersection(*(writer.known(ids) for writer in writers))


class _Storing:
    """Stores in a thread of its own, in order, never far behind the encoder.

    With an interval of n images, the store is flushed after each half of it, and the encoder waits while
    three quarters are not flushed: the last quarter is for what is being encoded just then.
    """

    def __init__(self, writers: Sequence[IndexWriter], timing: Timing, interval: int | None) -> None:
        self._writers, self._timing, self._interval = writers, timing, interval
        self._pool = ThreadPoolExecutor(1, "clipretrieval-store")
        self._jobs: deque[Future[None]] = deque()
        self._failed = False
        self.arrived = 0  # images that were encoded
        self._sent = self._asked = self._durable = 0  # of them: put, to be flushed, and flushed
        self._flushed_at, self._flush_took = time.monotonic(), 0.0

    def __enter__(self) -> _Storing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def expect(self, images: int) -> None:
        """Count images that were encoded, and wait while too many of them are not flushed."""
        self.arrived += images
        if self._interval is not None:
            while self._jobs and 4 * (self.arrived - self._durable) > 3 * self._interval:
                self._settle()

    def put(self, batch: EncodedBatch) -> None:
        """Hand a chunk over to the store; wait where it is behind, and raise what failed in it."""
        while len(self._jobs) >= WAITING:
            self._settle()
        images = len(batch) + len(batch.known)
        self._sent += images
        self._submit(lambda: self._put(batch, images))
        if self._is_due():
            self._ask()

    def finish(self) -> None:
        """Store and flush all that was handed over."""
        while self._jobs:
            self._settle()
        if self._failed:
            for writer in self._writers:
                with suppress(Exception):  # what failed before is what the caller has to know
                    writer.settle()
                with suppress(Exception):
                    writer.store.flush()
        elif self._sent:
            for writer in self._writers:
                writer.keep()
            self._ask()
            self._settle()

    def _is_due(self) -> bool:
        if self._interval is not None:
            return 2 * (self._sent - self._asked) >= self._interval
        idle = self._asked == self._durable
        return idle and time.monotonic() - self._flushed_at >= max(PAUSE, SHARE * self._flush_took)

    def _ask(self) -> None:
        upto = self._asked = self._sent
        self._submit(lambda: self._flush(upto))

    def _submit(self, work: Callable[[], None]) -> None:
        self._jobs.append(self._pool.submit(self._unless_failed, work))

    def _unless_failed(self, work: Callable[[], None]) -> None:
        if self._failed:  # what comes behind a failure is not stored: there would be a hole
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise

    def _settle(self) -> None:
        self._jobs.popleft().result()

    def _put(self, batch: EncodedBatch, images: int) -> None:
        with self._timing.measure("store", images):
            for writer in self._writers:
                writer.put(batch)

    def _flush(self, upto: int) -> None:
        started = time.monotonic()
        with self._timing.measure("flush", upto - self._durable):
            for writer in self._writers:
                writer.flush()
        self._durable = upto
        self._flushed_at = time.monotonic()
        self._flush_took = self._flushed_at - started
