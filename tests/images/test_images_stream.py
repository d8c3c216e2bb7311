"""How a stream of pictures runs: labels beside it, errors, laziness, counts and ids."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from clipretrieval.errors import ImageDecodeError, InvalidInputError
from clipretrieval.images import (
    RawImage,
    SkippedImage,
    check_on_error,
    content_id,
    count_hint,
    decode,
    iter_images,
    iter_raw,
    unique_ids,
)

BATCH = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
NCHW = torch.from_numpy(BATCH.transpose(0, 3, 1, 2).copy())
LABELS = [3, 1, 4, 1, 5]


def png(array: np.ndarray[Any, Any]) -> bytes:
    """An array as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


class Failing(Dataset):
    """A dataset of two pictures whose second cannot be fetched."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> Any:
        return {0: BATCH[0]}[place]


class Stream(IterableDataset):
    """A dataset whose length is not known."""

    def __iter__(self) -> Iterator[Any]:
        return iter(NCHW)


@pytest.mark.parametrize("labels", [LABELS, np.array(LABELS), torch.tensor(LABELS), tuple(LABELS)])
def test_labels_of_known_length_are_checked_at_the_call(labels: Any) -> None:
    """Labels of every kind come out as Python ints, and a wrong number is refused with both lengths."""
    found = [raw.label for raw in iter_raw(BATCH, labels)]
    assert found == LABELS
    assert {type(label) for label in found} == {int}
    with pytest.raises(InvalidInputError, match="4 images but 5 labels"):
        iter_raw(BATCH[:4], labels)


@pytest.mark.parametrize(
    ("n_images", "n_labels", "words"), [(3, 5, "images ended after 3"), (5, 3, "labels ended after 3")]
)
def test_lengths_that_show_late_are_checked_at_the_shorter_end(
    n_images: int, n_labels: int, words: str
) -> None:
    """Where a length is not known beforehand, the mismatch is raised once the shorter side ends."""
    for images, labels in (
        (iter(BATCH[:n_images]), LABELS[:n_labels]),
        (BATCH[:n_images], iter(LABELS[:n_labels])),
    ):
        raws = iter_raw(images, labels)
        assert [next(raws).label for _ in range(3)] == LABELS[:3]
        with pytest.raises(InvalidInputError, match=words):
            next(raws)


@pytest.mark.parametrize("labels", ["abcde", 3, {"a": 1}, np.eye(5), torch.eye(5), np.array(1)])
def test_labels_of_no_accepted_kind_are_refused(labels: Any) -> None:
    """Text, scalars, mappings and tables are no sequence of labels."""
    with pytest.raises(InvalidInputError, match="labels"):
        iter_raw(iter(BATCH), labels)


def test_a_generator_is_pulled_one_picture_at_a_time() -> None:
    """Nothing is pulled before it is asked for, and never more than one picture ahead."""
    pulled = 0

    def endless() -> Iterator[Any]:
        nonlocal pulled
        while True:
            pulled += 1
            yield BATCH[0]

    stream = iter_images(endless())
    assert pulled == 0
    for count in (1, 2, 3):
        next(stream)
        assert pulled == count


def test_errors_of_the_source_come_through_unchanged() -> None:
    """What a generator or a Dataset raises is neither translated nor skipped."""

    def failing() -> Iterator[Any]:
        yield BATCH[0]
        raise ConnectionError("the camera is gone")

    for images, kind in ((failing(), ConnectionError), (Failing(), KeyError)):
        stream = iter_images(images, on_error="skip")
        assert next(stream).index == 0
        with pytest.raises(kind):
            next(stream)


def test_broken_pictures_raise_or_are_passed_over(tmp_path: Path) -> None:
    """Under "skip" broken pictures leave a gap in the indices and a record; labels stay aligned."""
    path = tmp_path / "bad.png"
    path.write_bytes(b"rubbish")
    images = [BATCH[0], path, BATCH[2], b"rubbish"]
    skipped: list[SkippedImage] = []
    found = list(iter_images(images, LABELS[:4], on_error="skip", skipped=skipped))
    assert [(item.index, item.label) for item in found] == [(0, 3), (2, 4)]
    assert [(item.index, item.source) for item in skipped] == [(1, str(path)), (3, None)]
    assert "bad.png" in skipped[0].reason
    assert "image number 3" in skipped[1].reason
    assert len(list(iter_images(images, on_error="skip"))) == 2
    with pytest.raises(ImageDecodeError, match=r"bad\.png"):
        list(iter_images(images))


@pytest.mark.parametrize("value", ["ignore", None, ["skip"]])
def test_other_error_policies_are_refused_at_the_call(value: Any) -> None:
    """Only "raise" and "skip" are error policies."""
    for call in (check_on_error, lambda policy: iter_images([], on_error=policy)):
        with pytest.raises(InvalidInputError, match="on_error must be one of 'raise', 'skip'"):
            call(value)
    check_on_error("raise")


def test_counts_are_known_where_they_are_cheap() -> None:
    """Sequences, arrays and datasets are counted; iterators are not, and none is consumed."""
    pairs = TensorDataset(NCHW, torch.tensor(LABELS))
    five = [BATCH, NCHW, list(BATCH), TensorDataset(NCHW), DataLoader(pairs, batch_size=2), BATCH[..., 0]]
    assert [count_hint(source) for source in five] == [5] * 6
    assert count_hint(DataLoader(pairs, batch_size=2, drop_last=True)) == 4
    assert count_hint(DataLoader(pairs, batch_size=2, sampler=[0, 1, 2])) == 3
    for unknown in (Stream(), DataLoader(Stream()), DataLoader(pairs, batch_sampler=[[0], [1]])):
        assert count_hint(unknown) is None
    generator = iter(BATCH)
    assert count_hint(generator) is None
    assert len(list(iter_raw(generator))) == 5
    with pytest.raises(InvalidInputError, match="expected the path"):
        count_hint(7)


def test_equal_pixels_share_an_id_and_files_are_known_by_their_bytes(tmp_path: Path) -> None:
    """Decoded pictures are identified by their RGB pixels, files and bytes by their encoded bytes."""
    decoded = [BATCH[0], NCHW[0], NCHW[0] / 255, Image.fromarray(BATCH[0]), np.asfortranarray(BATCH[0])]
    (pixel_id,) = {decode(RawImage(0, payload)).id for payload in decoded}
    data = png(BATCH[0])
    file_id = hashlib.blake2b(data, digest_size=16).hexdigest()
    (tmp_path / "a.png").write_bytes(data)
    for payload in (data, bytearray(data), memoryview(data), tmp_path / "a.png"):
        assert decode(RawImage(0, payload)).id == file_id
    for payload in (*decoded, data, tmp_path / "a.png"):
        assert content_id(RawImage(0, payload)) == decode(RawImage(0, payload)).id
    others = [BATCH[1], BATCH[0].reshape(7, 6, 3), BATCH[0, ..., 0], BATCH[0] ^ 1]
    ids = {decode(RawImage(0, payload)).id for payload in others} | {pixel_id, file_id}
    assert len(ids) == 6
    assert {len(picture_id) for picture_id in ids} == {32}


def test_an_id_needs_no_decoding() -> None:
    """The id of bytes that are no picture is still the hash of those bytes."""
    assert content_id(RawImage(0, b"rubbish")) == hashlib.blake2b(b"rubbish", digest_size=16).hexdigest()


def test_repeated_ids_are_numbered_across_batches() -> None:
    """The first of equal ids stays plain; later ones are numbered, also in later batches."""
    seen: dict[str, int] = {}
    assert unique_ids(["a", "b", "a", "a"], seen) == ["a", "b", "a-2", "a-3"]
    assert unique_ids(["b", "c", "a"], seen) == ["b-2", "c", "a-4"]
    assert unique_ids(["a"], {}) == ["a"]


def test_importing_the_module_does_not_load_torch() -> None:
    """The module and its use on plain pictures leave torch alone."""
    program = (
        "import sys, numpy, clipretrieval.images as images\n"
        "assert len(list(images.iter_images(numpy.zeros((2, 3, 3, 3), 'uint8')))) == 2\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
