"""Passes that are asked for one by one, such as those of single images: side by side, or several in one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from threadpoolctl import ThreadpoolController

from clipretrieval._util.forks import renew_after_fork
from clipretrieval.encoding.thread_choice import ThreadChoice
from clipretrieval.encoding.workers import torch_alone

__all__ = ["JointPasses"]

Given = TypeVar("Given")
Made = TypeVar("Made")

CALM = 4
"""Passes in a row that began beside no other, after which the next one counts as alone."""


@dataclass(eq=False)
class _Asked(Generic[Given, Made]):
    """What one thread asks for."""

    key: Hashable
    given: Given
    rows: int
    made: list[Made] = field(default_factory=list)  # one, once it is there
    failed: bool = False  # in company, so it is computed by itself
    left: bool = False  # an interrupt has ended the wait
    alone: bool = False  # until another one is asked
    company: list[_Asked[Given, Made]] = field(default_factory=list)  # whose pass this thread runs
    news: SimpleQueue[None] = field(default_factory=SimpleQueue)  # wakes its thread


class JointPasses:
    """Runs passes for threads that ask at the same time, in those threads themselves.

    A pass that is asked for alone has the number of threads that `ThreadChoice` finds the quickest. One that
    is asked for beside others has one thread, and so have the next few: whoever asked at the same time asks
    again. Once there are as many passes as torch has threads, others wait. Whoever has finished wakes the
    first one, which takes along all that wait for the same, up to a limit, for a pass of several rows takes
    less time than as many passes. Nobody waits where there is a place.

    Torch's setting stays what it is, for every thread. The threads are OpenMP's, in which torch computes
    convolutions. MKL, which it takes for products of matrices in float32, keeps the number that
    `torch.set_num_threads` gave to a thread, if it did.

    Parameters
    ----------
    limit : int
        Rows of a pass that several have asked for, at most.
    clock : callable
        Returns seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit, self._clock = limit, clock
        self._choices: dict[Hashable, ThreadChoice] = {}
        self._here = threading.local()
        self._after_fork()
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._running: set[_Asked[Any, Any]] = set()
        self._waiting: deque[_Asked[Any, Any]] = deque()
        self._calm = CALM

    def run(
        self, key: Hashable, given: Given, rows: int, work: Callable[[Sequence[Given]], Sequence[Made]]
    ) -> Made:
        """Run a pass in this thread, or have another thread run it with its own.

        Parameters
        ----------
        key : hashable
            The same for what may be computed together.
        given : object
            What `work` makes the answer of.
        rows : int
            How many images that is.
        work : callable
            Makes an answer of each object that it is given. If it fails for several, it is called again for
            each by itself, by whom that one belongs to; so an error reaches whom it concerns.

        Returns
        -------
        object
            The answer to `given`.
        """
        with torch_alone():
            if getattr(self._here, "asks", False):  # a signal's handler, or a deleted object's, in the block
                with _pools().limit(limits=1):
                    return work([given])[0]
            asked: _Asked[Given, Made] = _Asked(key, given, rows)
            try:
                self._here.asks = True
                self._enter(asked)
                while not asked.made:
                    if asked in self._running:
                        self._compute(asked, work)
                    else:
                        asked.news.get()
                return asked.made[0]
            finally:
                self._here.asks = False
                try:
                    self._leave(asked)
                except BaseException:  # an interrupt, halfway
                    self._leave(asked)
                    raise

    def _enter(self, asked: _Asked[Any, Any]) -> None:
        """Take a place, or a place in the line."""
        with self._lock:
            asked.alone = not self._running and self._calm >= CALM
            self._calm = 0 if self._running else self._calm + 1
            for each in self._running:
                each.alone = False
            if len(self._running) < torch.get_num_threads():
                self._running.add(asked)
            else:
                self._waiting.append(asked)

    def _compute(self, asked: _Asked[Given, Made], work: Callable[[Sequence[Given]], Sequence[Made]]) -> None:
        """Run the pass of one that has a place, and of those that wait for the same."""
        most = torch.get_num_threads()  # as the user has it now; 1 where a fork allows no more
        with self._lock:
            choice = self._choices.setdefault((asked.key, asked.rows, most), ThreadChoice(most))
            threads = choice.choose() if asked.alone else 1
            self._gather(asked)
        company = asked.company
        started = self._clock()
        try:
            with _pools().limit(limits=threads):
                made = work([each.given for each in company])
        except Exception:
            if len(company) == 1:
                raise
            for each in company:
                each.failed = True
            self._send_back(asked)
            return
        seconds = self._clock() - started
        with self._lock:
            if asked.alone:
                choice.note(seconds)
        for each, one in zip(company, made, strict=True):
            each.made.append(one)

    def _gather(self, asked: _Asked[Any, Any]) -> None:
        """Take out of the line what is computed with the pass of one."""
        asked.company, rows = [asked], asked.rows
        for each in list(self._waiting):
            alike = each.key == asked.key and not (asked.failed or each.failed)
            if alike and rows + each.rows <= self._limit:
                asked.company.append(each)  # first, so that an interrupt here loses none
                self._waiting.remove(each)
                rows += each.rows

    def _send_back(self, asked: _Asked[Any, Any]) -> None:
        """Put those whose pass came to nothing back where they were, at the head of the line."""
        with self._lock:
            for each in reversed(asked.company[1:]):
                if not (each.made or each.left or each in self._waiting):
                    self._waiting.appendleft(each)
            asked.company = asked.company[:1]

    def _leave(self, asked: _Asked[Any, Any]) -> None:
        """Tell those who came along, and give the place to the next one; however the thread's turn ended."""
        for each in asked.company:
            each.news.put(None)
        self._send_back(asked)
        with self._lock:
            asked.left = True
            if asked in self._waiting:
                self._waiting.remove(asked)
            if asked in self._running and self._waiting:
                first = self._waiting[0]
                self._running.add(first)
                first.news.put(None)
                self._waiting.popleft()  # last, so that an interrupt here loses none
            self._running.discard(asked)


@cache
def _pools() -> Any:
    """Return what sets the number of OpenMP's threads for the calling thread alone."""
    return ThreadpoolController().select(user_api="openmp")
