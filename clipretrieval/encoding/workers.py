"""Work on items in threads, in order and a few at a time."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from clipretrieval._util.forks import ForkLock, no_inherited_threads
from clipretrieval.errors import InvalidInputError

__all__ = ["SPARE_ITEMS", "in_chunks", "side_by_side", "torch_alone", "usable_cores"]

Given = TypeVar("Given")
Made = TypeVar("Made")

SPARE_ITEMS = 2
"""Items waiting beyond those being worked on."""

_setting = ForkLock()


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def in_chunks(items: Iterable[Given], size: int) -> Iterator[list[Given]]:
    """Yield lists of `size` items; the last one, also before a failure, may be shorter."""
    chunk: list[Given] = []
    try:
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def side_by_side(
    work: Callable[[Given], Made],
    items: Iterator[Given],
    workers: int,
    threads: int | None,
    *,
    inline: bool = True,
    most: int | None = None,
    alone: Callable[[], AbstractContextManager[object]] | None = None,
) -> Iterator[Made]:
    """Do some work on items in threads, in order, never more than a few items ahead.

    A single item is worked on in the caller's thread, with all of torch's threads; unless `inline` is False,
    for compiled code, which is bound to the number of threads that it was compiled for. Where `items` fails,
    what came before is worked on first.

    Parameters
    ----------
    threads : int, optional
        Of torch, for each worker.
    most : int, optional
        Items that are taken before the first result is asked for, if fewer than `workers` and the spare ones.
    alone : callable, optional
        Returns the context in which a single item is worked on: `torch_alone` when left out.
    """
    failure: Exception | None = None
    process = os.getpid()

    def take() -> Given | None:
        nonlocal failure
        try:
            return next(items, None)
        except Exception as error:  # noqa: BLE001  raised below, behind what came before it
            failure = error
            return None

    room = min(workers + SPARE_ITEMS, most or workers + SPARE_ITEMS)
    first = take()
    second = take() if first is not None and (room > 1 or inline) else None
    if first is not None and second is None and inline:
        with torch_alone() if alone is None else alone():
            made = work(first)
        yield made
    elif first is not None:
        workers = min(workers, room)
        settled = threading.Barrier(workers + 1)
        pool = ThreadPoolExecutor(
            workers, "clipretrieval", *((_take_threads, (threads,)) if threads is not None else ())
        )
        try:
            # All begin at once, so that nobody touches torch's setting later.
            for _ in range(workers):
                pool.submit(settled.wait)
            settled.wait()
            waiting: deque[Future[Made]] = deque([pool.submit(work, first)])
            pending, more = second, True
            while waiting or more:
                while more and len(waiting) < room:
                    item, pending = (take() if pending is None else pending), None
                    more = item is not None
                    if item is not None:
                        waiting.append(pool.submit(work, item))
                if waiting:
                    yield waiting.popleft().result()
                if os.getpid() != process:
                    raise InvalidInputError(
                        "the threads that work ahead for this iterator are in the process that this one was "
                        "forked from; begin another iterator here"
                    )
        finally:
            if os.getpid() == process:
                settled.abort()
                pool.shutdown(wait=True, cancel_futures=True)
    if failure is not None:
        raise failure


@contextmanager
def torch_alone() -> Iterator[None]:
    """Have torch compute without threads that stayed behind at a fork."""
    import torch  # raw pixels need nothing of it

    with no_inherited_threads(torch.get_num_threads, _take_threads):
        yield


def _take_threads(threads: int) -> None:
    """Set the number of torch's threads for this new thread alone.

    `torch.set_num_threads` also sets what threads begin with that torch has not seen yet, so another thread
    puts that back at once.
    """
    import torch

    with _setting.current:
        default = torch.get_num_threads()
        torch.set_num_threads(threads)
        restoring = threading.Thread(target=torch.set_num_threads, args=(default,))
        restoring.start()
        restoring.join()
