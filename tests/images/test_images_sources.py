"""Everything that may hold pictures, and the order, labels and ids that come out of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from clipretrieval.errors import InvalidInputError
from clipretrieval.images import count_hint, iter_images, iter_raw

BATCH = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
NCHW = torch.from_numpy(BATCH.transpose(0, 3, 1, 2).copy())
LABELS = [3, 1, 4, 1, 5]


def png(array: np.ndarray[Any, Any]) -> bytes:
    """An array as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


class Pictures(Dataset):
    """A map-style dataset of PIL images, with labels if asked for."""

    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled

    def __len__(self) -> int:
        return len(BATCH)

    def __getitem__(self, place: int) -> Any:
        image = Image.fromarray(BATCH[place])
        return (image, LABELS[place]) if self.labelled else image


class Stream(IterableDataset):
    """An iterable dataset of pairs (CHW tensor, label)."""

    def __iter__(self) -> Iterator[Any]:
        return zip(NCHW, LABELS, strict=True)


class Transformed(Dataset):
    """A dataset of what a function makes of each place."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return len(BATCH)

    def __getitem__(self, place: int) -> Any:
        return self.item(place)


UNLABELLED = {
    "NHWC array": lambda: BATCH,
    "NCHW uint8 tensor": lambda: NCHW,
    "NCHW float tensor": lambda: NCHW.float() / 255,
    "list of arrays": lambda: list(BATCH),
    "tuple of tensors": lambda: tuple(NCHW),
    "generator of PIL images": lambda: (Image.fromarray(array) for array in BATCH),
    "iterator of bytes": lambda: map(png, BATCH),
    "list of bytearrays": lambda: [bytearray(png(array)) for array in BATCH],
    "object array": lambda: np.array([Image.fromarray(array) for array in BATCH] + [None], dtype=object)[:-1],
    "mixed kinds": lambda: [
        BATCH[0],
        NCHW[1],
        Image.fromarray(BATCH[2]),
        png(BATCH[3]),
        NCHW[4].double() / 255,
    ],
    "map-style Dataset": lambda: Pictures(labelled=False),
    "Dataset of one-tuples": lambda: TensorDataset(NCHW),
    "DataLoader of tensors": lambda: DataLoader(NCHW, batch_size=2),
    "DataLoader of one-tuples": lambda: DataLoader(TensorDataset(NCHW), batch_size=2),
    "DataLoader of lists": lambda: DataLoader(Pictures(labelled=False), batch_size=2, collate_fn=list),
    "DataLoader without batches": lambda: DataLoader(NCHW, batch_size=None),
}
LABELLED = {
    "pairs": lambda: zip(BATCH, LABELS, strict=True),
    "lists of two": lambda: [[array, label] for array, label in zip(BATCH, LABELS, strict=True)],
    "labels from NumPy": lambda: zip(BATCH, np.array(LABELS), strict=True),
    "labels from torch": lambda: zip(BATCH, torch.tensor(LABELS)[:, None], strict=True),
    "map-style Dataset": lambda: Pictures(labelled=True),
    "Subset": lambda: Subset(Pictures(labelled=True), range(5)),
    "TensorDataset": lambda: TensorDataset(NCHW, torch.tensor(LABELS)),
    "iterable Dataset": Stream,
    "DataLoader": lambda: DataLoader(TensorDataset(NCHW, torch.tensor(LABELS)), batch_size=2),
    "DataLoader of floats": lambda: DataLoader(TensorDataset(NCHW / 255, torch.tensor(LABELS)), batch_size=3),
    "DataLoader of an iterable": lambda: DataLoader(Stream(), batch_size=2),
    "DataLoader of pairs": lambda: DataLoader(Pictures(labelled=True), batch_size=2, collate_fn=list),
    "DataLoader without batches": lambda: DataLoader(Stream(), batch_size=None),
    "DataLoader of ready batches": lambda: DataLoader([(NCHW, LABELS)], batch_size=None),
}


def listed(batch: Any) -> Any:
    """A batch of pairs as a tuple of pictures and one of labels."""
    return tuple(zip(*batch, strict=True))


LISTED = {
    "tuples": listed,
    "lists": lambda batch: [[image for image, _ in batch], [label for _, label in batch]],
    "labels as a tensor": lambda batch: (listed(batch)[0], torch.tensor(listed(batch)[1])),
    "labels as an array": lambda batch: (listed(batch)[0], np.array(listed(batch)[1])),
    "pairs": lambda batch: batch,
    "a tuple of pairs": tuple,
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kind", LISTED)
def test_a_batch_may_list_its_pictures_and_then_its_labels(kind: str, size: int) -> None:
    """Whatever `collate_fn` makes of pairs of PIL images, arrays, tensors or bytes, no picture is lost."""
    sources: list[Any] = [[Image.fromarray(array) for array in BATCH], BATCH, NCHW, [*map(png, BATCH)]]
    for images in sources:
        pairs = list(zip(images, LABELS, strict=True))
        loader = DataLoader(pairs, batch_size=size, collate_fn=LISTED[kind])
        found = list(iter_images(loader))
        assert np.array_equal([np.asarray(item.image) for item in found], BATCH)
        assert [item.label for item in found] == LABELS


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("collate", [listed, lambda batch: batch, tuple, lambda batch: [*map(list, batch)]])
def test_paths_and_labels_of_a_batch_are_told_apart_by_their_names(
    collate: Any, size: int, tmp_path: Path
) -> None:
    """Two paths before two labels are no pair of a path and a label, though all of it is text."""
    pairs = [(str(tmp_path / f"{place}.png"), f"class {place}") for place in range(5)]
    for (path, _), array in zip(pairs, BATCH, strict=True):
        Image.fromarray(array).save(path)
    loader = DataLoader(pairs, batch_size=size, collate_fn=collate)
    assert [(item.source, item.label) for item in iter_images(loader)] == pairs


def test_a_batch_may_be_without_labels_or_pictures() -> None:
    """Arrays of several pictures, lists beside None, and empty lists are taken for what they are."""
    images = [Image.fromarray(array) for array in BATCH]
    for collate in (np.stack, lambda batch: (batch,), lambda batch: (batch, None)):
        found = list(iter_images(DataLoader(images, batch_size=2, collate_fn=collate)))
        assert np.array_equal([np.asarray(item.image) for item in found], BATCH)
        assert {item.label for item in found} == {None}
    assert list(iter_images(DataLoader(images, collate_fn=lambda _: ([], [])))) == []


@pytest.mark.parametrize("kind", UNLABELLED)
def test_every_unlabelled_source_gives_the_same_pictures(kind: str) -> None:
    """Each kind of source yields its pictures in order, without labels, and takes labels beside it."""
    found = list(iter_images(UNLABELLED[kind]()))
    assert np.array_equal([np.asarray(item.image) for item in found], BATCH)
    assert [item.index for item in found] == [0, 1, 2, 3, 4]
    assert {(item.label, item.source) for item in found} == {(None, None)}
    given = list(iter_images(UNLABELLED[kind](), iter("abcde")))
    assert [item.label for item in given] == list("abcde")


@pytest.mark.parametrize("kind", LABELLED)
def test_every_labelled_source_gives_plain_labels(kind: str) -> None:
    """Each kind of pairs yields pictures and Python labels, and refuses labels beside them."""
    found = list(iter_images(LABELLED[kind]()))
    assert np.array_equal([np.asarray(item.image) for item in found], BATCH)
    assert [(item.label, type(item.label)) for item in found] == [(label, int) for label in LABELS]
    with pytest.raises(InvalidInputError, match="one or the other"):
        list(iter_raw(LABELLED[kind](), LABELS))


@pytest.mark.parametrize(
    "single", [BATCH[0], NCHW[0], NCHW[0].float() / 255, png(BATCH[0]), Image.fromarray(BATCH[0])]
)
def test_one_picture_is_a_batch_of_one(single: Any) -> None:
    """A single picture of any kind yields itself."""
    (found,) = iter_images(single, ["only"])
    assert np.array_equal(np.asarray(found.image), BATCH[0])
    assert (found.label, count_hint(single)) == ("only", 1)


def test_files_keep_their_paths(tmp_path: Path) -> None:
    """A file's path, alone or in a list, as text or Path, becomes the picture's source."""
    path = tmp_path / "a.png"
    path.write_bytes(png(BATCH[0]))
    for images in (path, str(path), [path], iter([str(path)]), np.array([str(path)])):
        (found,) = iter_images(images)
        assert found.source == str(path)
        assert np.array_equal(np.asarray(found.image), BATCH[0])
    loader = DataLoader(Transformed(lambda place: (str(path), f"class {place}")), batch_size=2)
    assert [(item.source, item.label) for item in iter_images(loader)] == [
        (str(path), f"class {place}") for place in range(5)
    ]


def test_grey_batches_are_taken_apart() -> None:
    """NHW and NHW1 arrays and N1HW tensors are grey pictures."""
    grey = BATCH[..., 0]
    for batch in (grey, grey[..., None], NCHW[:, :1]):
        assert np.array_equal([np.asarray(item.image)[..., 2] for item in iter_images(batch)], grey)
    (one,) = iter_images(grey[0])
    assert np.array_equal(np.asarray(one.image)[..., 1], grey[0])


@pytest.mark.parametrize("count", [3, 4])
def test_arrays_that_may_be_channels_first_are_refused(count: int) -> None:
    """An array of shape (3, height, width) is not guessed at: the error says how to write either meaning."""
    with pytest.raises(InvalidInputError, match=r"transpose\(1, 2, 0\).*\[\.\.\., None\]"):
        iter_raw(BATCH[:1].repeat(count, axis=0)[..., 0])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (3, "int; expected the path"),
        (None, "NoneType; expected the path"),
        ({"a": BATCH[0]}, "dict; expected"),
        ({"a.png"}, "set; expected"),
        (io.BytesIO(b""), "BytesIO; expected"),
        (Dataset(), "Dataset; expected"),
        ([BATCH[0], 7], "item number 1 is of the type int; expected"),
        ([(BATCH[0], 1, 2)], "tuple of length 3"),
        (BATCH / 255, "uint8 in HWC order, not float64.*float CHW"),
        (BATCH.astype(np.int64), "uint8.*int64"),
        (BATCH[..., :2], r"1, 3 or 4 channels.*\(6, 7, 2\)"),
        (np.zeros((2, 0, 7, 3), np.uint8), r"none of them zero.*\(0, 7, 3\)"),
        (NCHW.permute(0, 2, 3, 1), r"\(channels, height, width\).*\(6, 7, 3\).*permute"),
        (NCHW.long(), "int64"),
        (NCHW[0, 0], r"\(6, 7\).*unsqueeze"),
        ([BATCH], r"\(5, 6, 7, 3\)"),
        (DataLoader(NCHW[:, 0], batch_size=3), r"DataLoader.*\(3, 6, 7\)"),
        (DataLoader(NCHW[:, 0], batch_size=3, collate_fn=torch.stack), r"DataLoader.*\(3, 6, 7\)"),
        (DataLoader(TensorDataset(NCHW[:, 0], NCHW), batch_size=3), r"DataLoader.*\(3, 6, 7\)"),
        (DataLoader([(NCHW, LABELS[:4])], batch_size=None), "5 images but 4 labels"),
        (DataLoader([((BATCH[0], BATCH[1]), [1])], batch_size=None), "2 images but 1 labels"),
        (
            DataLoader([(BATCH[:2], [1, 2], [3, 4])], batch_size=None),
            r"3 parts; expected.*\(images, labels\)",
        ),
        (DataLoader([((BATCH[0],), ("a",), ("b",))], batch_size=None), "3 parts"),
        (DataLoader([{"image": 1}], batch_size=1), "dict"),
        (zip(BATCH, torch.eye(5), strict=True), r"label must be one int or str.*\(5,\)"),
    ],
)
def test_what_is_no_picture_is_refused(images: Any, words: str) -> None:
    """The error names what was found and what is expected, under either error policy."""
    with pytest.raises(InvalidInputError, match=words):
        list(iter_images(images, on_error="skip"))


@pytest.mark.parametrize(
    "empty", [[], iter(()), BATCH[:0], NCHW[:0], BATCH[:0, ..., 0], Subset(Pictures(True), [])]
)
def test_an_empty_source_yields_nothing(empty: Any) -> None:
    """A source without pictures is not an error here."""
    assert list(iter_images(empty, [])) == []
