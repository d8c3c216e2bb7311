"""How many threads compute a pass that nothing else runs beside: measured, not assumed."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from clipretrieval._util.forks import renew_after_fork
from clipretrieval.encoding.workers import torch_alone

__all__ = ["LonePasses"]

KEPT = 5
"""Durations of which the median counts, …"""
FIRST = 2
"""… and of which each number of threads has some before one is preferred."""
SLOWED = 1.5
"""Times the quickest pass on all threads, beyond which one thread is tried for the first time."""
TRIED_AGAIN = 64
"""Passes after which the other number of threads is tried again, …"""
SELDOM = 4
"""… or so many times as many, where it took more than twice as long."""
CALM = 4
"""Passes in a row beside which nothing was asked, after which the next one is alone."""


@dataclass
class _Measured:
    """How long passes of one kind took, by the number of threads."""

    seconds: dict[int, deque[float]] = field(default_factory=dict)
    passes: int = 0
    quickest: float = math.inf  # on all threads

    def choose(self, most: int) -> int:
        """Return the number of threads for the next pass."""
        if most == 1:
            return 1
        self.passes += 1
        together = self.seconds.get(most, ())
        if 1 not in self.seconds and (
            len(together) < KEPT or statistics.median(together) < SLOWED * self.quickest
        ):
            return most  # a change of the number costs some passes their speed, so it needs a reason
        for threads in (most, 1):
            if len(self.seconds.get(threads, ())) < FIRST:
                return threads
        medians = {threads: statistics.median(self.seconds[threads]) for threads in (most, 1)}
        best, other = sorted(medians, key=lambda threads: medians[threads])
        again = TRIED_AGAIN * (SELDOM if medians[other] > 2 * medians[best] else 1)
        if self.passes % again:
            return best
        self.seconds[other].clear()  # what it took long ago counts no more
        return other

    def note(self, threads: int, seconds: float) -> None:
        """Take how long a pass took."""
        if threads > 1:
            self.quickest = min(self.quickest, seconds)
        if threads in self.seconds:
            self.seconds[threads].append(seconds)
        else:  # the first warms up
            self.seconds[threads] = deque(maxlen=KEPT)


class LonePasses:
    """Gives each pass that is asked for alone, such as that of a single image, its number of threads.

    Threads that compute together wait for each other at every layer. On an idle machine that pays; beside a
    busy process, each wait lasts until the system lets the other thread run, and a pass takes many times as
    long as on one thread. So both are measured, on what is asked anyway. A pass that is asked for beside
    another one has one thread, and so have the next few: whoever asked at the same time asks again. Torch's
    setting stays what it is, for every thread.

    The threads are OpenMP's, in which torch computes convolutions. MKL, which it takes for products of
    matrices in float32, keeps the number that `torch.set_num_threads` gave to a thread, if it did.

    Parameters
    ----------
    clock : callable
        Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._measured: dict[Hashable, _Measured] = {}
        self._after_fork()
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._asked, self._overlaps, self._calm = 0, 0, CALM

    @contextmanager
    def running(self, kind: Hashable) -> Iterator[int]:
        """Run a pass in the block, in this thread, which begins no other there.

        Parameters
        ----------
        kind : hashable
            What passes of the same duration have in common.

        Yields
        ------
        int
            Its number of threads.
        """
        with torch_alone(), self._asking() as (first, overlaps):
            with self._lock:
                alone = first and self._calm >= CALM
                most = torch.get_num_threads()  # as the user has it now; 1 where a fork allows no more
                measured = self._measured.setdefault((kind, most), _Measured())
                threads = measured.choose(most) if alone else 1
            started = self._clock()
            with _pools().limit(limits=threads):
                yield threads
            seconds = self._clock() - started
            with self._lock:
                if alone and overlaps == self._overlaps:  # nothing was asked beside it
                    measured.note(threads, seconds)

    @contextmanager
    def _asking(self) -> Iterator[tuple[bool, int]]:
        """Count who asks at the same time; yield whether nobody else did, and the overlaps until now."""
        with self._lock:
            self._asked += 1
            first = self._asked == 1
            if not first:
                self._overlaps += 1
                self._calm = 0
            overlaps = self._overlaps
        try:
            yield first, overlaps
        finally:
            with self._lock:
                self._asked -= 1
                if first and overlaps == self._overlaps:
                    self._calm += 1


@cache
def _pools() -> Any:
    """Return what sets the number of OpenMP's threads for the calling thread alone."""
    return ThreadpoolController().select(user_api="openmp")
