"""Passes of one kind get the number of threads that is the quickest at the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clipretrieval.encoding.thread_choice import COST, SELDOM, SETTLED, TRIED, TRIED_AGAIN, ThreadChoice

TURN = SETTLED + TRIED


class Machine:
    """Passes that take on two threads and on one what they would on a machine."""

    def __init__(self, together: float, single: float, warming: Callable[[int], float] = lambda _: 1) -> None:
        self.together, self.single, self.warming = together, single, warming
        self.choice = ThreadChoice(2)
        self.taken: list[int] = []
        self.spent, self.since = 0.0, 0

    def ask(self, passes: int) -> list[int]:
        """Run some passes, and return their numbers of threads."""
        for _ in range(passes):
            threads = self.choice.choose()
            self.taken.append(threads)
            self.since = self.since + 1 if self.taken[-2:-1] == [threads] else 1
            seconds = (self.together if threads == 2 else self.single) * self.warming(self.since)
            self.spent += seconds
            self.choice.note(seconds)
        return self.taken[-passes:]


@pytest.mark.parametrize(("together", "single", "best"), [(0.023, 0.033, 2), (0.0068, 0.0044, 1)])
def test_each_number_is_tried_early_and_the_quicker_is_kept_to(together, single, best):
    machine = Machine(together, single)
    assert machine.ask(2 * TURN) == [1] * TURN + [2] * TURN
    assert machine.ask(TRIED_AGAIN - TURN) == [best] * (TRIED_AGAIN - TURN)
    assert machine.ask(2000).count(best) >= 2000 * (1 - TURN / TRIED_AGAIN) - TURN


def test_passes_that_warm_up_after_a_change_decide_nothing():
    """Kernels are built and threads begin at first, which takes many times as long as a pass."""
    machine = Machine(0.023, 0.033, lambda passes: 20 if passes <= SETTLED else 1)
    assert machine.ask(2000)[-1900:].count(2) >= 1700


def test_between_equals_nothing_changes():
    machine = Machine(0.021, 0.0213)
    machine.ask(500)
    assert machine.choice._best == 1
    assert machine.taken.count(2) <= TURN * (1 + 500 / TRIED_AGAIN)


@pytest.mark.parametrize("slower", [4, 100])
def test_where_threads_wait_for_each_other_trials_take_little(slower):
    """Beside busy processes: a trial ends once it is lost, and the next comes the later the more it took."""
    machine = Machine(0.002 * slower, 0.002)
    assert machine.ask(2 * TURN) == [1] * TURN + [2] * (SETTLED + 1) + [1] * (TURN - SETTLED - 1)
    machine.ask(20_000)
    assert machine.spent <= 20_000 * 0.002 * (1 + 2 * COST)
    assert machine.taken.count(2) > SETTLED + 1


def test_what_was_the_quicker_is_left_once_it_is_not():
    machine = Machine(0.02, 0.03)
    assert set(machine.ask(300)[2 * TURN : TRIED_AGAIN]) == {2}
    machine.together = 1.0  # a neighbor begins
    assert machine.ask(2 * TURN)[-TURN:] == [1] * TURN
    machine.together = 0.02  # and ends
    assert machine.ask(5000)[-TURN:] == [2] * TURN


def test_a_pass_that_took_hours_puts_no_trial_off_for_ever():
    """As of a process that was stopped meanwhile."""
    machine = Machine(0.02, 0.03, lambda _: 1e6 if len(machine.taken) == TURN + 1 + SETTLED else 1)
    assert machine.ask(2 * TURN)[-1] == 1
    assert machine.ask(SELDOM + TURN)[-1] == 2


def test_one_thread_is_all_there_is():
    choice = ThreadChoice(1)
    for _ in range(200):
        assert choice.choose() == 1
        choice.note(1.0)


def test_a_clock_that_stands_still_does_no_harm():
    machine = Machine(0.0, 0.0)
    assert set(machine.ask(300)) == {1, 2}
