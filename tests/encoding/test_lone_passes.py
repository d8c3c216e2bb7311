"""Passes that are asked for alone get the number of threads that is the quickest at the time."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from clipretrieval import StagedEncoder
from clipretrieval.encoding.lone_passes import CALM, SELDOM, TRIED_AGAIN, LonePasses


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """Whatever machine this is, torch takes two threads."""
    if torch.get_num_threads() != 2:
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        yield
        torch.set_num_threads(before)
    else:
        yield


class Machine:
    """A clock, and passes that take what they would on a machine."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.together, self.single = 0.0, seconds["together"], seconds["single"]
        self.lone = LonePasses(lambda: self.now)

    def ask(self, passes: int) -> list[int]:
        """Run some passes, and return their numbers of threads."""
        taken = []
        for _ in range(passes):
            with self.lone.running("image") as threads:
                self.now += self.together if threads == 2 else self.single
            taken.append(threads)
        return taken


def test_one_thread_is_tried_where_all_have_become_slow_and_the_quicker_is_kept_to():
    idle, busy = Machine(together=0.03, single=0.05), Machine(together=0.03, single=0.05)
    assert set(idle.ask(400)) == {2}
    busy.ask(10)
    busy.together = 1.0
    taken = busy.ask(400)
    assert taken.count(2) <= 12
    busy.together = 0.02
    assert busy.ask(2 * SELDOM * TRIED_AGAIN * 3)[-20:] == [2] * 20


def test_what_the_first_pass_takes_to_warm_up_decides_nothing():
    machine = Machine(together=1.0, single=0.05)
    machine.ask(1)
    machine.together = 0.03
    assert machine.ask(30)[-20:] == [2] * 20


def test_kinds_of_passes_are_told_apart():
    machine = Machine(together=1.0, single=0.1)
    machine.ask(10)
    with machine.lone.running("another") as threads:
        assert threads == 2


@pytest.mark.parametrize("askers", [2, 3, 5, 8])
def test_passes_beside_others_have_one_thread(askers):
    """What they take says nothing of a pass alone, and whoever asked at the same time is expected again."""
    machine = Machine(together=0.03, single=0.05)
    with ExitStack() as asking:
        taken = [asking.enter_context(machine.lone.running("image")) for _ in range(askers)]
    assert taken == [2] + [1] * (askers - 1)
    assert not any(measured.seconds for measured in machine.lone._measured.values())
    assert machine.ask(CALM + 2) == [1] * CALM + [2, 2]


def test_who_asks_again_and_again_beside_another_keeps_to_one_thread():
    machine = Machine(together=0.03, single=0.05)
    machine.ask(3)
    with machine.lone.running("image"):
        assert machine.ask(20) == [1] * 20
    assert machine.ask(CALM + 1) == [1] * CALM + [2]


def test_torch_keeps_its_setting():
    """In the block, this thread alone computes on fewer; a thread that begins meanwhile has all of them."""
    before, elsewhere = torch.get_num_threads(), []
    lone = LonePasses()
    with lone.running("image") as threads:
        assert torch.get_num_threads() == threads == 2
    with lone.running("image"), lone.running("image") as threads:
        assert (threads, torch.get_num_threads()) == (1, 1)
        other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert (torch.get_num_threads(), elsewhere) == (before, [before])


def test_a_failed_pass_is_no_longer_asked():
    lone = LonePasses()
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), lone.running("image"):
            raise ValueError("broken")
    assert not any(each.seconds for each in lone._measured.values())  # what failed tells nothing
    with lone.running("image") as threads:
        assert threads == 2


def test_single_images_are_encoded_alike_on_any_number_of_threads(tiny_model):
    """One by one, again and again, as in a batch."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(12)]
    encoder = StagedEncoder(tiny_model, stage="mid", precision="fp32")
    whole = encoder.encode(images)
    alone = np.concatenate([encoder.encode([image]) for image in images])
    np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-6)
    *_, single = encoder._tower.lone._measured.values()
    assert 2 in single.seconds


def test_what_decodes_an_image_may_ask_for_another(tiny_model):
    """A pass holds its place while it computes, and not while images are read or looked up."""
    encoder = StagedEncoder(tiny_model, stage="mid", precision="fp32")
    encoder._tower._lone = LonePasses()
    images, asked = [np.zeros((32, 32, 3), dtype=np.uint8)], []

    def known(ids):
        asked.append(encoder.encode(images).shape)
        return []

    (batch,) = encoder.stream(images, known=known)
    assert (len(batch), asked) == (1, [(1, encoder.dim)])
