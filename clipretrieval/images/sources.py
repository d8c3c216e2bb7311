"""Everything that may hold images, as one stream of `RawImage`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipretrieval._util.foreign import column_list, is_instance, is_tensor, plain_value
from clipretrieval._util.labels import check_labelled, composed
from clipretrieval._util.text import counted
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.csv_files import is_csv_path
from clipretrieval.images.decoding import RawImage
from clipretrieval.images.folders import ImageFolder
from clipretrieval.images.formats import image_extensions
from clipretrieval.images.listing import listed, means_folder
from clipretrieval.images.rgb import CHANNELS, check_image, is_image_like
from clipretrieval.images.tables import ImageTable, column_values, is_table
from clipretrieval.images.tars import ImageTars, is_tars, without_labels
from clipretrieval.images.urls import url_name

__all__ = [
    "check_class_names",
    "class_names",
    "count_hint",
    "has_named_labels",
    "iter_raw",
    "open_labels",
]

_EXPECTED = (
    "expected the path or URL of a folder, image or tar, the path of a CSV file, encoded bytes, a PIL image, "
    "a uint8 array (HW, HWC, NHW or NHWC), a tensor (CHW or NCHW; uint8, or float in [0, 1]), a DataFrame or "
    "other table, a torch Dataset or DataLoader, or a sequence or iterator of single images or of (image, "
    "label) pairs"
)
_ABSENT: Any = object()


class _Sample(NamedTuple):
    image: Any
    label: Any = _ABSENT
    source: str | None = None


@dataclass(frozen=True)
class _Source:
    """Where images come from: nothing is read from it before `items` is called."""

    items: Callable[[], Iterator[_Sample]]
    count: int | None


def iter_raw(images: Any, labels: Any = None) -> Iterator[RawImage]:
    """Walk through a source of images without decoding any.

    Only one image (or one batch of a DataLoader) is held at a time. What a generator, Dataset or
    DataLoader raises comes through unchanged.

    Parameters
    ----------
    images : image-like
        See `clipretrieval.images` for all that is accepted.
    labels : sequence or iterator, optional
        One label for each image. They replace the labels of a folder; with (image, label) pairs they are
        refused.

    Yields
    ------
    RawImage

    Raises
    ------
    InvalidInputError
        At the call, if the source or the labels are of no accepted kind, or if both lengths are known
        and differ. Later, if an item is no image, or if images or labels end before the other.
    """
    source = _open(images, labelled=labels is None)
    if labels is None:
        return _raw_images(source.items(), None)
    label_count, label_iterator = open_labels(labels)
    if source.count is not None and label_count is not None and source.count != label_count:
        raise InvalidInputError(
            f"there are {counted(source.count, 'image')} but {counted(label_count, 'label')}: pass one label "
            "for each image"
        )
    return _raw_images(source.items(), label_iterator)


def count_hint(images: Any) -> int | None:
    """Return the number of images in a source where that is known without walking through it.

    A folder is scanned. A DataLoader is counted through its sampler.

    Returns
    -------
    int or None
        None for iterators, generators, and datasets and samplers without a length.

    Raises
    ------
    InvalidInputError
        If the source is of no accepted kind, or is a folder without images.
    """
    return _open(images, quiet=True).count


def _raw_images(items: Iterator[_Sample], labels: Iterator[Any] | None) -> Iterator[RawImage]:
    index = -1
    for index, (image, label, source) in enumerate(items):
        if isinstance(image, Mapping):
            raise InvalidInputError(
                f"item number {index} is {_kind(image)}; pass pairs instead, such as "
                "((row['image'], row['label']) for row in rows)"
            )
        if not is_image_like(image):
            raise InvalidInputError(f"item number {index} is {_kind(image)}; {_EXPECTED}")
        check_image(image)
        if labels is not None:
            if label is not _ABSENT:
                raise InvalidInputError(
                    "the source yields (image, label) pairs and labels were passed as well: pass one or "
                    "the other"
                )
            label = next(labels, _ABSENT)
            if label is _ABSENT:
                raise InvalidInputError(f"the labels ended after {index}, but there are more images")
        if isinstance(image, (str, os.PathLike)):
            source = url_name(image)
            if is_tars(image):
                raise InvalidInputError(
                    f"item number {index} is the tar {str(source)!r}, among images or not in a list; pass "
                    "read_tars([…]) of all tars, and single images apart"
                )
        yield RawImage(index, image, None if label is _ABSENT else plain_value(label), source)
    if labels is not None and next(labels, _ABSENT) is not _ABSENT:
        raise InvalidInputError(f"the images ended after {index + 1}, but there are more labels")


def _open(images: Any, *, labelled: bool = True, quiet: bool = False) -> _Source:
    images = listed(images, quiet=quiet)
    if isinstance(images, ImageTars):
        return _Source(lambda: _tar_items(images if labelled else without_labels(images)), None)
    if isinstance(images, ImageFolder):
        return _open_listed(images.paths, images.labels if labelled else None)
    if isinstance(images, ImageTable):
        return _open_listed(images.images, images.labels if labelled else None)
    if (column := column_values(images)) is not None:
        return _open_all(column)
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        return _open_array(images)
    if is_tensor(images):
        return _open_batch(images) if images.ndim == 4 else _open_all([images])
    if is_image_like(images) and not isinstance(images, np.ndarray):
        return _open_all([images])
    if is_instance(images, "torch.utils.data", "DataLoader"):
        return _Source(lambda: _loader_items(images), _loader_count(images))
    # An open file would give its lines, a mapping its keys, a set no order.
    if isinstance(images, (io.IOBase, Mapping, Set, type)):
        raise InvalidInputError(f"images is {_kind(images)}; {_EXPECTED}")
    if hasattr(images, "__iter__"):
        return _open_all(images)
    if hasattr(images, "__getitem__") and (count := _length(images)) is not None:  # a map-style Dataset
        return _Source(lambda: map(_pair, (images[place] for place in range(count))), count)
    raise InvalidInputError(f"images is {_kind(images)}; {_EXPECTED}")


def has_named_labels(images: Any) -> bool:
    """Whether the labels that come with images are names of folders, or written in a file."""
    if is_tars(images) or (isinstance(images, ImageTable) and images.states is not None):
        return True
    if isinstance(images, str | os.PathLike):
        return is_csv_path(images) or means_folder(images)
    return isinstance(images, ImageFolder)


def class_names(images: Any) -> dict[int, str]:
    """Return the names behind the integers of a torch dataset that has ``class_to_idx``; none of others."""
    while any(is_instance(images, "torch.utils.data", kind) for kind in ("DataLoader", "Subset")):
        images = images.dataset
    numbers = getattr(images, "class_to_idx", None)
    if not isinstance(numbers, Mapping) or getattr(images, "target_transform", None) is not None:
        return {}
    return {number: name for name, number in numbers.items() if isinstance(number, int)}


def check_class_names(fitted: Mapping[int, str], given: Mapping[int, str]) -> None:
    """Refuse a dataset in which an integer is another class than in the one that was fitted."""
    for number, name in given.items():
        if composed(fitted.get(number, name)) != composed(name):
            raise InvalidInputError(
                f"the label {number} is the class {name!r} in this dataset and was {fitted[number]!r} in the "
                "one that was fitted: such datasets number the classes that a folder happens to have. Pass "
                "the folders' paths instead of datasets: their labels are the classes' names"
            )


def _open_all(items: Iterable[Any]) -> _Source:
    return _Source(lambda: map(_pair, items), _length(items))


def _open_listed(images: Sequence[Any], labels: Sequence[Any] | None) -> _Source:
    if labels is None:
        return _open_all(images)
    return _Source(lambda: map(_Sample, images, labels), len(images))


def _tar_items(tars: ImageTars) -> Iterator[_Sample]:
    for image, label, source in tars.samples():
        yield _Sample(image, label if tars.labelled else _ABSENT, source)


def _open_array(array: Any) -> _Source:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] not in CHANNELS:
        if array.shape[0] in (3, 4):
            raise InvalidInputError(
                f"an array of the shape {array.shape} may be one image in CHW order or {array.shape[0]} "
                "grey ones: use .transpose(1, 2, 0) on the one, or array[..., None] on the others"
            )
        return _open_batch(array)
    return _open_batch(array) if array.ndim == 4 else _open_all([array])


def _open_batch(batch: Any) -> _Source:
    if len(batch):
        check_image(batch[0])
    return _Source(lambda: (_Sample(batch[place]) for place in range(len(batch))), len(batch))


def _pair(item: Any) -> _Sample:
    """Take an (image, label) pair apart, and the (image,) of a TensorDataset; leave all else whole."""
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 2 and is_image_like(item[0]):
        return _Sample(*item)
    return _Sample(item)


def _loader_items(loader: Any) -> Iterator[_Sample]:
    batched = loader.batch_sampler is not None
    default = getattr(sys.modules.get("torch.utils.data"), "default_collate", None)
    for batch in loader:
        yield from _unbatch(batch, batched, collated=batched and loader.collate_fn is default)


def _unbatch(batch: Any, batched: bool, collated: bool) -> Iterator[_Sample]:
    """Take apart what one step of a DataLoader gave.

    Parameters
    ----------
    batch : tensor, array or sequence
        NCHW or NHWC; [NCHW, labels]; [images, labels]; a list of single images or pairs; or, unbatched,
        one of these.
    batched : bool
        Whether the loader batches; if not, a step may give a single image.
    collated : bool
        Whether torch's own collation made the batch, which turns pairs into [images, labels].
    """
    parts = [batch] if is_tensor(batch) or isinstance(batch, np.ndarray) else batch
    if not isinstance(parts, (tuple, list)):
        yield _pair(parts)
        return
    first: Any = parts[0] if parts else None
    stacked = is_tensor(first) and (first.ndim == 4 or collated or (batched and first is batch))
    stacked |= isinstance(first, np.ndarray) and first.ndim == 4
    listed = isinstance(first, (tuple, list)) and (collated or _are_images(*parts))
    if (stacked or listed) and len(parts) > 2:
        raise InvalidInputError(
            f"a DataLoader's batch has {len(parts)} parts; expected images, or (images, labels): leave out "
            "the others in collate_fn"
        )
    if stacked or listed:
        yield from _paired(*parts)
    elif batched:
        yield from map(_pair, parts)
    else:
        yield _pair(parts)


def _are_images(first: Sequence[Any], *rest: Any) -> bool:
    """Whether the first part of a batch lists its images, and is not one of its (image, label) pairs.

    A label may be text, as a path is: here, text is an image only if it is named like one.
    """
    labels = rest[0] if rest else None
    labelled = not (isinstance(labels, (tuple, list)) and labels and all(map(_is_image, labels)))
    return labelled and all(map(_is_image, first))


def _is_image(obj: Any) -> bool:
    if isinstance(obj, (str, os.PathLike)):
        return Path(obj).suffix.lower() in image_extensions()
    if isinstance(obj, np.ndarray) or is_tensor(obj):
        return bool(obj.ndim >= 2)
    return is_image_like(obj)


def _paired(images: Any, labels: Any = None) -> Iterator[_Sample]:
    if is_tensor(images) and images.ndim != 4:
        raise InvalidInputError(
            "a DataLoader's tensors must have the shape (images, channels, height, width); found "
            f"{tuple(images.shape)}"
        )
    if labels is None:
        yield from map(_Sample, images)
        return
    count, label_iterator = open_labels(labels)
    if count != len(images):
        raise InvalidInputError(f"a DataLoader's batch has {len(images)} images but {count} labels")
    yield from map(_Sample, images, label_iterator)


def _loader_count(loader: Any) -> int | None:
    batches = loader.batch_sampler
    # Another batch sampler may repeat or leave out what it likes, and without one a step may be a batch.
    if not is_instance(batches, "torch.utils.data", "BatchSampler"):
        return None
    count = _length(batches.sampler)
    return count - count % batches.batch_size if count is not None and batches.drop_last else count


def open_labels(labels: Any) -> tuple[int | None, Iterator[Any]]:
    """Return how many labels there are, where that is known, and an iterator of them; refuse other things."""
    if is_table(labels):
        raise InvalidInputError(f"labels is {_kind(labels)}, a table; pass one column of it")
    if (column := column_list(labels, "labels")) is not None:
        check_labelled(column)
        labels = column
    if isinstance(labels, (str, bytes, io.IOBase, Mapping, Set, type)) or not hasattr(labels, "__iter__"):
        raise InvalidInputError(
            f"labels is {_kind(labels)}; expected a sequence or iterator with one label for each image"
        )
    return _length(labels), iter(labels)


def _length(obj: Any) -> int | None:
    try:
        return len(obj)
    except (TypeError, NotImplementedError):
        return None


def _kind(obj: Any) -> str:
    length = f" of length {len(obj)}" if isinstance(obj, (tuple, list)) else ""
    return f"of the type {type(obj).__name__}{length}"
