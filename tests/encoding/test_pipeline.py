"""Decoding ahead of the encoder: in order, bounded, and out of the way when something breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipretrieval import ImageDecodeError, InvalidInputError, StagedEncoder
from clipretrieval.encoding.engine.engine import Engine
from clipretrieval.encoding.preparation import Preparation
from clipretrieval.images import iter_images


@pytest.fixture
def encoder(tiny_model):
    return StagedEncoder(tiny_model, stage="mid", precision="fp32", batch_size=4)


def picture(number):
    """A small picture that no other number has."""
    return np.full((8, 8, 3), [number % 256, number // 256, 7], dtype=np.uint8)


def test_order_and_ids_are_those_of_the_source(encoder):
    """Hundreds of pictures come back in their order, with the ids that decoding gives them."""
    pictures = [picture(n) for n in range(200)]
    batches = list(encoder.stream(iter(pictures), iter(range(200))))
    assert [index for batch in batches for index in batch.indices] == list(range(200))
    assert [label for batch in batches for label in batch.labels] == list(range(200))
    assert [i for batch in batches for i in batch.ids] == [decoded.id for decoded in iter_images(pictures)]
    assert all(len(batch) == 4 for batch in batches)
    assert all(batch.seconds["decode"] >= 0 < batch.seconds["encode"] for batch in batches)


def test_the_source_is_read_only_a_little_ahead(encoder):
    """A generator is pulled no further than a few chunks beyond what was taken."""
    pulled = 0

    def source():
        nonlocal pulled
        while True:
            pulled += 1
            yield picture(pulled)

    stream = encoder.stream(source())
    for taken in range(1, 6):
        next(stream)
        assert pulled <= 4 * (taken + encoder.plan.streams + 3)
    stream.close()


def test_closing_early_leaves_no_thread(encoder):
    """When the consumer stops half-way, the workers end."""
    before = threading.active_count()
    stream = encoder.stream(picture(n) for n in range(1000))
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 10])
def test_an_error_of_the_source_comes_after_what_was_before_it(encoder, count):
    """All pictures that came before the source failed are encoded; then its own error is raised."""

    def source():
        for number in range(count):
            yield picture(number)
        raise OSError("the camera was unplugged")

    stream, seen = encoder.stream(source()), []
    with pytest.raises(OSError, match="unplugged"):
        seen.extend(index for batch in stream for index in batch.indices)
    assert seen == list(range(count))


def test_a_picture_like_a_thread_is_passed_over(encoder):
    """Resizing its shorter side would fill the memory: it is named, and can be skipped."""
    thread = np.zeros((1, 20_000, 3), np.uint8)
    with pytest.raises(ImageDecodeError, match="20000 × 1 pixels: too narrow"):
        encoder.encode([picture(0), thread])
    skipped = []
    batches = list(encoder.stream([picture(0), thread, picture(1)], on_error="skip", skipped=skipped))
    assert [index for batch in batches for index in batch.indices] == [0, 2]
    assert [found.index for found in skipped] == [1]


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_no_more_is_encoded_ahead_than_was_allowed(tiny_model, ahead, monkeypatch):
    """Beyond the pictures that were handed over, at most `ahead` have been begun."""
    begun = []
    run = Engine.run
    monkeypatch.setattr(
        Engine, "run", lambda self, squares, stages: begun.extend(squares) or run(self, squares, stages)
    )
    encoder, handed = StagedEncoder(tiny_model, batch_size=2), 0
    for batch in encoder.stream([picture(n) for n in range(12)], ahead=ahead):
        handed += len(batch.ids)
        time.sleep(0.05)
        assert len(begun) <= handed + ahead
    assert handed == 12
    with pytest.raises(InvalidInputError, match="ahead must be a whole number, at least 1"):
        encoder.stream([], ahead=0)


def test_a_broken_file_in_the_middle_is_named(encoder, tmp_path):
    """An error in a worker surfaces with the file's name; skipping it goes on behind it."""
    for number in range(40):
        Image.fromarray(picture(number)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "17.png").write_bytes(b"broken")
    with pytest.raises(ImageDecodeError, match=r"17\.png"):
        encoder.encode(tmp_path)
    skipped = []
    batches = list(encoder.stream(tmp_path, on_error="skip", skipped=skipped))
    assert [index for batch in batches for index in batch.indices] == [n for n in range(40) if n != 17]
    assert [(s.index, s.source) for s in skipped] == [(17, str(tmp_path / "17.png"))]


def test_arrays_and_tensors_are_prepared_as_clip_does(encoder, photographs):
    """Arrays, tensors and pictures of any size give the very bytes of CLIP's own transform."""
    transform = open_clip.image_transform(64, is_train=False)
    arrays = [np.asarray(photo) for photo in photographs]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    expected = encoder.encode(photographs)
    np.testing.assert_array_equal(encoder.encode(arrays), expected)
    np.testing.assert_array_equal(encoder.encode(tensors), expected)
    preparation = Preparation(encoder.preprocessing)
    mean, std = np.array(encoder.preprocessing["mean"]), np.array(encoder.preprocessing["std"])
    squares = preparation.batch(arrays, pixel=False, clip=True)["clip"]
    for square, photo in zip(squares, photographs, strict=True):
        undone = transform(photo).numpy().transpose(1, 2, 0) * std + mean
        np.testing.assert_array_equal(square, np.rint(undone * 255))


@given(st.integers(1, 90), st.integers(1, 90))
def test_any_shape_becomes_a_square(height, width):
    """Pictures of any shape are resized and cut to the size asked for."""
    preparation = Preparation({**vars(open_clip.transform.PreprocessCfg()), "size": 32})
    rng = np.random.default_rng(height * 100 + width)
    array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    squares = preparation.batch([array], pixel=True, clip=True)
    expected = preparation.batch([Image.fromarray(array)], pixel=True, clip=True)
    for name in ("pixel", "clip"):
        assert squares[name].shape == (1, 32, 32, 3)
        np.testing.assert_array_equal(squares[name], expected[name])


ENDLESS = """
import sys, numpy as np
from clipretrieval import StagedEncoder
encoder = StagedEncoder(sys.argv[1], stage="mid", batch_size=4)
def source():
    n = 0
    while True:
        n += 1
        if n == 50:
            print("running", flush=True)
        yield np.full((8, 8, 3), n % 256, dtype=np.uint8)
for batch in encoder.stream(source()):
    pass
"""


def test_an_interrupt_ends_everything(tiny_model):
    """Ctrl-C to the process group in the middle of a stream ends it, and nothing of it stays."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, tiny_model],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "running\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        _wait_for_group_to_end(process.pid)


def _wait_for_group_to_end(group):
    """Raise ProcessLookupError as soon as no process of the group is left."""
    for _ in range(100):
        os.killpg(group, 0)
        time.sleep(0.05)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
def test_vectors_are_the_same_whether_their_number_was_known(count):
    """A list, which has a length, and an iterator, which has none, give what the stream's batches hold."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (8, 9, 3), dtype=np.uint8) for _ in range(count)]
    encoder = StagedEncoder(stage="pixel")
    streamed = np.concatenate([batch.vectors["pixel"] for batch in encoder.stream(pictures)])
    assert streamed.shape == (count, 3072)
    np.testing.assert_array_equal(encoder.encode(pictures), streamed)
    np.testing.assert_array_equal(encoder.encode(iter(pictures)), streamed)
