"""Passes that are asked for at the same time: side by side up to a number, several in one beyond it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from forked import ended_well, fork

from clipretrieval import StagedEncoder
from clipretrieval.encoding.joint_passes import CALM, JointPasses
from clipretrieval.encoding.thread_choice import SETTLED, TRIED

PATIENCE_S = 60


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Whatever machine this is, torch takes two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextmanager
def all_taken(joint: JointPasses) -> Iterator[Callable[[], None]]:
    """Have both places taken, and yield what frees the first of them; the other is freed at the end."""
    gates = [threading.Event() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        try:
            held = [pool.submit(joint.run, "held", None, 1, lambda _, g=gate: [g.wait()]) for gate in gates]
            until(lambda: len(joint._running) == 2)

            def free() -> None:
                gates[0].set()
                held[0].result(PATIENCE_S)

            yield free
        finally:
            for gate in gates:
                gate.set()


class Asking:
    """Threads that ask for passes which are recorded."""

    def __init__(self, limit: int = 4) -> None:
        self.joint = JointPasses(limit)
        self.pool = ThreadPoolExecutor(12)
        self.passes: list[list[Any]] = []

    def work(self, given: Any) -> list[Any]:
        """Answer each by ten times as much."""
        self.passes.append(list(given))
        if "interrupt" in given:
            raise KeyboardInterrupt
        if "bad" in given:
            raise ValueError("broken")
        return [each * 10 for each in given]

    def ask(self, given: Any, key: str = "image", rows: int = 1) -> Future[Any]:
        """Ask in a thread of its own, behind those that were asked before."""
        before = len(self.joint._waiting)
        future = self.pool.submit(self.joint.run, key, given, rows, self.work)
        until(lambda: len(self.joint._waiting) > before)
        return future

    def is_idle(self) -> bool:
        """Whether nobody has a place, nor waits for one."""
        return not self.joint._running and not self.joint._waiting


@pytest.fixture
def asking() -> Iterator[Asking]:
    """Askers who have gone when the test ends, with nothing left behind."""
    made = Asking()
    yield made
    made.pool.shutdown()
    assert made.is_idle()


def answers(futures: list[Future[Any]]) -> list[Any]:
    """Return what each got, or the error that reached it."""
    found = []
    for future in futures:
        error = future.exception(PATIENCE_S)
        found.append(future.result() if error is None else error)
    return found


def test_all_that_wait_for_the_same_are_computed_in_one_pass(asking):
    with all_taken(asking.joint) as free:
        futures = [asking.ask(number) for number in range(3)]
        assert asking.passes == []
        free()
        assert answers(futures) == [0, 10, 20]
    assert asking.passes == [[0, 1, 2]]


def test_only_what_belongs_together_is_joined_and_no_more_than_fits(asking):
    with all_taken(asking.joint) as free:
        asked = [(0, "a", 1), (1, "b", 1), (2, "a", 2), (3, "a", 2), (4, "a", 1), (5, "b", 9), (6, "b", 1)]
        futures = [asking.ask(*each) for each in asked]
        free()
        assert answers(futures) == [0, 10, 20, 30, 40, 50, 60]
    assert asking.passes == [[0, 2, 4], [1, 6], [3], [5]]


def test_where_there_is_a_place_nobody_waits(asking):
    with all_taken(asking.joint) as free:
        free()
        assert [asking.joint.run("image", number, 1, asking.work) for number in (1, 2)] == [10, 20]
    assert asking.passes == [[1], [2]]


def test_an_error_reaches_whom_it_concerns(asking):
    """A pass of several that fails is computed again one by one."""
    with all_taken(asking.joint) as free:
        futures = [asking.ask(given) for given in ("a", "bad", "b")]
        free()
        first, error, last = answers(futures)
    assert (first, last) == ("a" * 10, "b" * 10)
    assert isinstance(error, ValueError)
    assert asking.passes == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]


def test_what_fails_in_company_alone_is_no_error(asking):
    def short(given: Any) -> list[Any]:
        if len(given) > 1:
            raise MemoryError
        return asking.work(given)

    with all_taken(asking.joint) as free:
        before = len(asking.joint._waiting)
        futures = [asking.pool.submit(asking.joint.run, "image", n, 1, short) for n in range(3)]
        until(lambda: len(asking.joint._waiting) == before + 3)
        free()
        assert answers(futures) == [0, 10, 20]


def test_an_interrupt_of_the_pass_reaches_the_thread_that_runs_it(asking):
    """Those who came along are computed by one of them."""
    with all_taken(asking.joint) as free:
        first = asking.ask("interrupt")
        others = [asking.ask(number) for number in (1, 2)]
        free()
        assert isinstance(first.exception(PATIENCE_S), KeyboardInterrupt)
        assert answers(others) == [10, 20]
    assert asking.passes == [["interrupt", 1, 2], [1, 2]]


def interrupt_main_thread() -> None:
    """Do what Ctrl-C does."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system cannot interrupt a thread")
@pytest.mark.parametrize("under_way", [False, True])
def test_who_is_interrupted_while_waiting_leaves_the_others_alone(asking, under_way):
    """In the line, and while another thread computes a pass with what it gave."""
    begun, go_on = threading.Event(), threading.Event()

    def work(given: Any) -> list[Any]:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return asking.work(given)

    with all_taken(asking.joint) as free:
        first = asking.pool.submit(asking.joint.run, "image", 1, 1, work)
        until(lambda: len(asking.joint._waiting) == 1)

        def interrupt() -> None:
            until(lambda: len(asking.joint._waiting) == 2)
            if under_way:
                free()
                assert begun.wait(PATIENCE_S)
            interrupt_main_thread()

        helper = asking.pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            asking.joint.run("image", 2, 1, asking.work)
        helper.result(PATIENCE_S)
        last = asking.pool.submit(asking.joint.run, "image", 3, 1, asking.work)
        until(lambda: len(asking.joint._waiting) == (1 if under_way else 2))
        go_on.set()
        free()
        assert answers([first, last]) == [10, 30]
    assert asking.passes == ([[1, 2], [3]] if under_way else [[1, 3]])


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system cannot interrupt a thread")
def test_a_signal_s_handler_may_ask_while_its_thread_waits(asking):
    """Else the two would wait for each other: a place may be given to the one that cannot go on."""
    answered = []

    def handle(*_: object) -> None:
        free()
        until(lambda: len(asking.joint._running) == 2)  # the place is the waiting one's by now
        answered.append(asking.joint.run("image", 5, 1, asking.work))

    before = signal.signal(signal.SIGINT, handle)
    try:
        with all_taken(asking.joint) as free:

            def interrupt() -> None:
                until(lambda: len(asking.joint._waiting) == 1)
                interrupt_main_thread()

            asking.pool.submit(interrupt)
            assert asking.joint.run("image", 1, 1, asking.work) == 10
    finally:
        signal.signal(signal.SIGINT, before)
    assert answered == [50]


def test_a_pass_may_ask_for_another(asking):
    """As an object's deletion may, in the middle of one."""

    def nested(given: Any) -> list[Any]:
        return [asking.joint.run("image", each, 1, asking.work) for each in given]

    with all_taken(asking.joint) as free:
        futures = [asking.pool.submit(asking.joint.run, "nested", n, 1, nested) for n in (1, 2)]
        until(lambda: len(asking.joint._waiting) == 2)
        free()
        assert answers(futures) == [10, 20]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_forked_while_others_wait_has_its_places_free(asking):
    def ask() -> None:
        assert asking.is_idle()
        assert asking.joint.run("image", 3, 1, asking.work) == 30
        assert asking.is_idle()

    with all_taken(asking.joint) as free:
        future = asking.ask(1)
        with asking.joint._lock:  # held by a thread that the child lacks
            child = fork(ask)
        assert ended_well(child)
        free()
        assert answers([future]) == [10]


class Machine:
    """A clock, and passes that take a second on one thread and much less on two."""

    def __init__(self) -> None:
        self.now = 0.0
        self.joint = JointPasses(4, lambda: self.now)

    def ask(self, passes: int) -> list[int]:
        """Run some passes, and return their numbers of threads."""
        return [self.joint.run("image", None, 1, self.work) for _ in range(passes)]

    def work(self, given: Any) -> list[int]:
        """Take what a pass takes."""
        threads = torch.get_num_threads()
        self.now += 1 / threads**2
        return [threads] * len(given)


def test_passes_alone_have_the_number_of_threads_that_is_quicker():
    machine = Machine()
    machine.ask(SETTLED + TRIED)
    assert machine.ask(20) == [2] * 20


def test_passes_beside_another_have_one_thread_and_so_have_the_next_few():
    """What they take says nothing of a pass alone, and whoever asked at the same time is expected again."""
    machine = Machine()
    machine.ask(20)
    (choice,) = machine.joint._choices.values()
    beside = []

    def work(given: Any) -> list[int]:
        beside.extend(ThreadPoolExecutor(1).submit(machine.ask, 20).result(PATIENCE_S))
        return machine.work(given)

    before = choice._passes
    assert machine.joint.run("image", None, 1, work) == 2
    assert beside == [1] * 20
    assert choice._passes == before
    assert machine.ask(CALM + 2) == [1] * CALM + [2] * 2


def test_torch_keeps_its_setting(asking):
    """In the pass, this thread alone computes on fewer; a thread that begins meanwhile has all of them."""
    elsewhere = []

    def work(given: Any) -> list[int]:
        other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        other.start()
        other.join()
        return [torch.get_num_threads()] * len(given)

    with all_taken(asking.joint) as free:
        futures = [asking.pool.submit(asking.joint.run, "image", n, 1, work) for n in range(2)]
        free()
        assert answers(futures) == [1, 1]
    assert (torch.get_num_threads(), set(elsewhere)) == (2, {2})


def test_a_failed_pass_tells_nothing_of_threads(asking):
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            asking.joint.run("image", "bad", 1, asking.work)
    (choice,) = asking.joint._choices.values()
    assert choice._passes == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore:this CPU has no bf16 instructions")
def test_threads_get_what_each_gets_alone(tiny_model, precision):
    """To the bit, at several stages and of several images, from passes that are shared."""
    encoder = StagedEncoder(tiny_model, stage="mid", precision=precision)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(16)]
    stages = [("mid",), ("layer1", "late"), ("final",), ("mid", "final")]

    def leaving(some: Any) -> list[Any]:
        """Ask a cascade of two exits; keep the vectors that it decides by."""
        seen = []

        def stay_on(place: int, batch: Any) -> Any:
            seen.append(batch.vectors[("layer1", "final")[place]])
            return np.ones(len(batch), dtype=bool)

        list(encoder.stream_exits(some, stages=("layer1", "final"), stay_on=stay_on))
        return seen

    def ask(number: int) -> list[Any]:
        some = images[number : number + 1 + number % 2]
        if number < 12:
            return list(encoder.encode_stages(some, stages[number // 3]).values())
        return leaving(some)

    alone = [ask(number) for number in range(15)]
    joint, passes = encoder._tower.joint, []
    compute = joint._compute

    def counted(asked: Any, work: Any) -> None:
        compute(asked, work)
        passes.append(len(asked.company))

    joint._compute = counted
    with ThreadPoolExecutor(15) as pool, all_taken(joint) as free:
        futures = [pool.submit(ask, number) for number in range(15)]
        until(lambda: len(joint._waiting) == 15)
        free()
        for found, expected in zip(answers(futures), alone, strict=True):
            for mine, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)
    assert passes[1:6] == [3] * 5
    assert not joint._running


def test_what_decodes_an_image_may_ask_for_another(tiny_model):
    """A pass holds its place while it computes, and not while images are read or looked up."""
    encoder = StagedEncoder(tiny_model, stage="mid", precision="fp32")
    images, asked = [np.zeros((32, 32, 3), dtype=np.uint8)], []

    def known(ids):
        asked.append(encoder.encode(images).shape)
        return []

    (batch,) = encoder.stream(images, known=known)
    assert (len(batch), asked) == (1, [(1, encoder.dim)])
