"""Labels that are known before any image is read, so that what is wrong with them shows at once."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np

from clipretrieval._util.labels import label_kind, stored_labels
from clipretrieval.comparison.indexes import NO_IMAGES
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.folders import ImageFolder
from clipretrieval.images.sources import iter_raw, open_labels
from clipretrieval.images.tables import ImageTable, labelled_source
from clipretrieval.retrieval.true_labels import check_kind
from clipretrieval.zeroshot import ZeroShotClassifier, check_true_labels

__all__ = ["NOTHING_ASKED", "check_both", "known_labels", "open_baseline"]

NOTHING_ASKED = "there are no images to classify; pass at least one that can be used"


def check_both(
    train: Any, train_labels: Any, test: Any, test_labels: Any
) -> tuple[list[Any] | None, list[Any] | None]:
    """Return the labels of both sides, None where only reading the images would tell them.

    Raises
    ------
    InvalidInputError
        If there are no images, labels are missing, of several types or too many, or those of one side are
        of another type than those of the other.
    """
    learnt = known_labels(train, train_labels, NO_IMAGES, "train")
    asked = known_labels(test, test_labels, NOTHING_ASKED, "test")
    if learnt is not None and asked is not None:
        check_kind(asked[0], learnt[0])
    return learnt and learnt[1], asked and asked[1]


def open_baseline(
    zero_shot: ZeroShotClassifier | bool | None,
    encoder: StagedEncoder,
    learnt: list[Any] | None,
    asked: list[Any] | None,
) -> ZeroShotClassifier | None:
    """Make the zero-shot classifier and encode its prompts; None where there is none, or none yet.

    Parameters
    ----------
    zero_shot, encoder
        As for `compare`.
    learnt, asked : list of labels, or None
        Labels of the training and the test images, as far as they are known.

    Raises
    ------
    InvalidInputError
        If there is no text tower, prompts or classes are not as they should be, or a test label is none of
        the classes.
    """
    if not zero_shot:
        return None
    if isinstance(zero_shot, ZeroShotClassifier):
        baseline = zero_shot
    elif learnt is None:
        encoder.text.encode(["a"])  # whether it can be loaded shows before an image is read
        return None
    else:
        kind = label_kind(learnt)
        if kind != "str":
            raise InvalidInputError(
                f"zero_shot=True takes the labels for the classes' names, and these are of the type {kind}; "
                "pass zero_shot=ZeroShotClassifier(encoder, {label: name, …})"
            )
        baseline = ZeroShotClassifier(encoder, sorted(map(str, set(learnt))))
    baseline.fit()
    if asked is not None:
        check_true_labels(baseline, asked)
    return baseline


def known_labels(images: Any, labels: Any, empty: str, side: str = "") -> tuple[str, list[Any]] | None:
    """Return the labels' type and the labels; None where only reading the images would tell them.

    Parameters
    ----------
    images, labels
        As for `RetrievalClassifier.fit`.
    empty : str
        What an error says where there are no images.
    side : str
        Which images these are, in the words of an error about their labels; empty where there are no others.

    Raises
    ------
    InvalidInputError
        If there are no images, or labels are missing, of several types or too many.
    """
    found = _labels(labelled_source(images, labels), labels)
    if found is None:
        return None
    if not found:
        raise InvalidInputError(empty)
    try:
        kind = label_kind(found)
        stored_labels(found, kind)
    except InvalidInputError as error:
        if not side:
            raise
        raise InvalidInputError(f"{side}: {error}") from error
    return kind, found


def _labels(images: Any, labels: Any) -> list[Any] | None:
    if labels is not None and not isinstance(labels, Sized):
        return None  # an iterator gives its labels once
    if isinstance(images, ImageFolder | ImageTable | list | tuple | np.ndarray):
        return [raw.label for raw in iter_raw(images, labels)]
    return None if labels is None else list(open_labels(labels)[1])
