"""Whether passes of one kind are quicker on all threads or on one: measured, not assumed."""

from __future__ import annotations

import math
import statistics
from collections import deque

__all__ = ["ThreadChoice"]

SETTLED = 2
"""Passes after a change of the number that do not count: threads and kernels are made anew."""
TRIED = 3
"""Passes that count in a trial, …"""
KEPT = 5
"""… and the last ones that count of the number that is kept to."""
GAIN = 0.9
"""Share of the other number's time below which a number is changed to."""
GIVEN_UP = 2
"""Times the other number's time beyond which one pass ends a trial, …"""
SLOWED = 1.5
"""… or beyond which passes on all threads have become slow, so that one is tried."""
TRIED_AGAIN, SELDOM = 64, 6400
"""Passes from one trial to the next, at least and at most, …"""
COST = 0.05
"""… and the share of all time that lost trials may take meanwhile."""


class ThreadChoice:
    """Chooses the number of threads for passes of one kind, which run one after the other.

    Threads that compute together wait for each other at every layer. On an idle machine that pays, unless
    layers are small; beside a busy process, each wait lasts until the system lets the other thread run, and a
    pass takes up to a hundred times as long as on one thread. So the first few passes have one thread, the
    next ones all, and the quicker is kept to. The other is tried again now and then, the more seldom the more
    time that cost, and one thread at once where all have become slow.

    Parameters
    ----------
    most : int
        All threads.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._best = self._present = 1
        self._seconds: dict[int, deque[float]] = {1: deque(maxlen=KEPT)}
        self._passes, self._spent = 0, 0.0  # since the number changed
        self._next_trial: float = SETTLED + TRIED
        self._usual = math.inf  # seconds on the best number when it was chosen, or less

    def choose(self) -> int:
        """Return the number of threads for the next pass."""
        return self._present

    def note(self, seconds: float) -> None:
        """Take how long that pass took, which nothing ran beside."""
        self._passes += 1
        self._spent += seconds
        if self._most == 1 or self._passes <= SETTLED:
            return
        self._seconds[self._present].append(seconds)
        if self._present == self._best:
            self._keep_to()
        else:
            self._try_on(seconds)

    def _keep_to(self) -> None:
        """Begin a trial of the other number, if it is time."""
        if len(self._seconds[self._best]) < TRIED:
            return
        median = statistics.median(self._seconds[self._best])
        self._usual = min(self._usual, median)
        slowed = self._best > 1 and median > SLOWED * self._usual
        if slowed or self._passes >= self._next_trial:
            self._change(self._most if self._best == 1 else 1)

    def _try_on(self, seconds: float) -> None:
        """End a trial, if it is decided."""
        tried, best = self._seconds[self._present], statistics.median(self._seconds[self._best])
        if seconds <= GIVEN_UP * best and len(tried) < TRIED:
            return
        self._next_trial, self._usual = TRIED_AGAIN, math.inf
        if statistics.median(tried) < GAIN * best:
            self._best = self._present
        else:
            lost = self._spent - self._passes * best
            self._next_trial = min(max(TRIED_AGAIN, lost / (COST * best) if best else 0), SELDOM)
            self._change(self._best)

    def _change(self, threads: int) -> None:
        if threads != self._best:  # what it took long ago counts no more
            self._seconds[threads] = deque(maxlen=KEPT)
        self._present, self._passes, self._spent = threads, 0, 0.0
