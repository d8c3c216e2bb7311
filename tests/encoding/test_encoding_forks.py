"""Encoding in a process that was forked from one that has encoded."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from forked import FORKS, ended_well, fork
from PIL import Image

from clipretrieval import StagedEncoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.images import rgb as _rgb

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def encoder(tiny_model: str) -> StagedEncoder:
    """An encoder whose threads, and the caller's own, have computed."""
    return StagedEncoder(tiny_model, stage="mid", precision="fp32", batch_size=2)


def test_a_forked_process_encodes_as_its_parent_has(encoder: Any, photographs: Any, tiny_model: str) -> None:
    """One image, several, texts, a pass that goes on and a new encoder: none waits for other threads."""

    def leave_one(place: int, batch: Any) -> Any:
        return np.arange(len(batch)) > 0

    def exits(images: Any) -> list[int]:
        left = encoder.stream_exits(images, stages=["layer1", "mid"], stay_on=leave_one)
        return [index for batch in left for index in batch.indices]

    several, one = encoder.encode(photographs), encoder.encode(photographs[:1])
    places = exits(photographs), exits(photographs[:2])
    texts, begun = encoder.text.encode(["a cat", "a dog"]), encoder.begin(photographs[:2])
    torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # the caller's own pool
    threads = torch.get_num_threads()

    def encode() -> None:
        assert np.allclose(encoder.encode(photographs[:1]), one, atol=1e-5)
        assert np.allclose(encoder.encode(photographs), several, atol=1e-5)
        assert np.allclose(encoder.text.encode(["a cat", "a dog"]), texts, atol=1e-5)
        assert np.allclose(encoder.begin(photographs[:2]).vectors, begun.vectors, atol=1e-5)
        assert len(begun.advance("final")) == 2
        assert (exits(photographs), exits(photographs[:2])) == places
        fresh = StagedEncoder(tiny_model, stage="mid", precision="fp32")
        assert fresh.fingerprint == encoder.fingerprint
        assert np.allclose(fresh.encode(photographs[:1]), one, atol=1e-5)
        assert torch.get_num_threads() == threads

    for _ in range(FORKS):
        assert ended_well(fork(encode))


def test_an_iterator_of_the_parent_is_refused(encoder: Any, photographs: Any) -> None:
    """What the parent's threads were encoding ahead never comes in a child, which says so at once."""
    batches = encoder.stream(photographs * 4)
    next(batches)

    def go_on() -> None:
        with pytest.raises(InvalidInputError, match="begin another iterator here"):
            list(batches)

    assert ended_well(fork(go_on))
    assert sum(map(len, batches)) == 30


def test_a_forked_process_waits_for_no_thread_that_was_decoding() -> None:
    """The locks of images that another thread was loading at the fork are free in the child."""
    held, leave = threading.Event(), threading.Event()

    def load() -> None:
        taken = [each.current for each in _rgb._LOAD_LOCKS]
        for lock in taken:
            lock.acquire()
        held.set()
        leave.wait()
        for lock in taken:
            lock.release()

    thread = threading.Thread(target=load)
    thread.start()
    held.wait()
    child = fork(lambda: _rgb.to_rgb(Image.new("L", (4, 4))).close())
    leave.set()
    thread.join()
    assert ended_well(child)
