"""The classes that can be voted for, fixed in order while a question is answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from clipretrieval._util.labels import class_array, stored_labels
from clipretrieval.retrieval.manifest import manifest_classes
from clipretrieval.types import AnyArray, Label, Neighbors

if TYPE_CHECKING:
    from clipretrieval._learner import Learner

__all__ = ["CLASSES_LOCK", "Ballot", "ClassIndex", "class_index", "listed_classes", "take_up"]

CLASSES_LOCK = threading.Lock()
"""Held while any classifier's ``classes_`` is replaced; a lock in an estimator could not be copied."""

if hasattr(os, "register_at_fork"):  # a forked process would wait for a thread that it does not have
    os.register_at_fork(
        before=CLASSES_LOCK.acquire,
        after_in_parent=CLASSES_LOCK.release,
        after_in_child=CLASSES_LOCK.release,
    )


@dataclass(frozen=True, eq=False)
class ClassIndex:
    """What follows from a classifier's ``classes_`` alone, kept from one question to the next.

    Attributes
    ----------
    classes : ndarray, shape (n_classes,)
        Sorted, of the type that was fitted.
    kind : {"bool", "int", "float", "str"}
    codes : dict
        Each class's place in `classes`, by its label as stored.
    listed : list of int or of str
        The classes that the store's manifest listed when they were taken up.
    """

    classes: AnyArray
    kind: str
    codes: Mapping[Label, int]
    listed: list[Label]


_INDEXES: WeakKeyDictionary[Learner, ClassIndex] = WeakKeyDictionary()
"""Of each classifier the last one; not among its attributes, as a question leaves these as they are."""


def class_index(classifier: Learner, manifest: Mapping[str, Any]) -> ClassIndex:
    """Return a classifier's classes by number, after those that its store has gained are taken up.

    Parameters
    ----------
    classifier : Learner
        Fitted.
    manifest : mapping
        Of its store.

    Raises
    ------
    StoreCorruptedError
        If the manifest lists no usable classes.
    """
    with CLASSES_LOCK:
        kind, listed = classifier._label_kind, manifest.get("classes")
        kept = _INDEXES.get(classifier)
        if kept is not None and (kept.classes is not classifier.classes_ or kept.kind != kind):
            kept = None
        if kept is not None and kept.listed is listed:
            return kept
        listed = manifest_classes(manifest)
        if kept is not None and kept.listed == listed:
            return kept
        classes = _take_up(classifier, listed)
        labels = sorted(stored_labels(classes.tolist(), kind))
        index = ClassIndex(classes, kind, {label: code for code, label in enumerate(labels)}, listed)
        _INDEXES[classifier] = index
        return index


def listed_classes(classifier: Learner, stored: set[Label], kind: str) -> AnyArray:
    """Return classes, as stored, in an array; the classifier's own where they are the same.

    Called with `CLASSES_LOCK` held.
    """
    kept = _INDEXES.get(classifier)
    same = kept is not None and kept.classes is getattr(classifier, "classes_", None)
    if kept is not None and same and kept.kind == kind and kept.codes.keys() == stored:
        return kept.classes
    return class_array(stored, kind)


def take_up(classifier: Learner, stored: Iterable[Label]) -> AnyArray:
    """Add classes, as stored, to those of the classifier, and return all of them."""
    with CLASSES_LOCK:
        return _take_up(classifier, stored)


def _take_up(classifier: Learner, stored: Iterable[Label]) -> AnyArray:
    known = stored_labels(classifier.classes_.tolist(), classifier._label_kind)
    if not set(stored) <= set(known):
        classifier.classes_ = class_array({*known, *stored}, classifier._label_kind)
    return classifier.classes_


class Ballot:
    """Classes by number, for one question; one that turns up while counting is added behind the others.

    Parameters
    ----------
    index : ClassIndex
    """

    def __init__(self, index: ClassIndex) -> None:
        self.kind = index.kind
        self._index = index
        self._more: dict[Label, int] = {}

    def __len__(self) -> int:
        return len(self._index.codes) + len(self._more)

    def codes(self, near: Neighbors) -> npt.NDArray[np.int64]:
        """Return each neighbour's class by number, shape (n, k); 0 where padded."""
        codes = np.zeros(near.labels.shape, dtype=np.int64)
        valid, known, more = near.valid, self._index.codes, self._more
        labels = near.labels[valid].tolist()
        found = [known.get(label, -1) for label in labels]
        if -1 in found:
            for place, label in enumerate(labels):
                if label not in known:
                    found[place] = more.setdefault(label, len(self))
        codes[valid] = found
        return codes

    @property
    def turned_up(self) -> list[Label]:
        """Classes that were found among neighbours only."""
        return list(self._more)

    def numbers(self, labels: Iterable[Label]) -> npt.NDArray[np.int64]:
        """Return the class numbers of stored labels, shape (n,); -1 for a class that nobody can vote for."""
        known, more = self._index.codes, self._more
        return np.array([known.get(label, more.get(label, -1)) for label in labels], dtype=np.int64)

    def labels(self, codes: npt.NDArray[np.int64]) -> AnyArray:
        """Return the labels of class numbers, in the type that was fitted."""
        taken: AnyArray = self.classes()[self.columns()[codes] if self._more else codes]
        return taken

    def classes(self) -> AnyArray:
        """Return all classes, sorted, in the type that was fitted."""
        if not self._more:
            return self._index.classes
        return class_array([*self._index.codes, *self._more], self.kind)

    def columns(self) -> npt.NDArray[np.int64]:
        """Return the place in `classes` of each class number, shape (n_classes,)."""
        if not self._more:
            return np.arange(len(self))
        listed = class_array([*self._index.codes, *self._more], self.kind, sort=False)
        return np.searchsorted(self.classes(), listed)
