"""The classes of an index, and their numbers while a question is answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.labels import class_array, stored_labels
from clipretrieval.retrieval.manifest import manifest_classes
from clipretrieval.types import Label, Neighbors

__all__ = ["CLASSES_LOCK", "UNKNOWN", "ClassNumbers", "Classes"]

UNKNOWN = -2
"""The number of what is answered of an image that is of no known class."""

CLASSES_LOCK = threading.Lock()
"""Held while any estimator's classes are replaced; a lock in an estimator could not be copied."""

if hasattr(os, "register_at_fork"):  # a forked process would wait for a thread that it does not have
    os.register_at_fork(
        before=CLASSES_LOCK.acquire,
        after_in_parent=CLASSES_LOCK.release,
        after_in_child=CLASSES_LOCK.release,
    )


class Classes:
    """The classes that are known of an index, which never change: others are another object.

    Parameters
    ----------
    stored : iterable of int or of str
        As stored.
    kind : {"bool", "int", "float", "str"}

    Attributes
    ----------
    labels : ndarray, shape (n_classes,)
        Sorted, of the type that was fitted.
    kind : {"bool", "int", "float", "str"}
    """

    def __init__(self, stored: Iterable[Label], kind: str) -> None:
        self.labels = class_array(stored, kind)
        self.kind = kind
        self._listed: list[Label] | None = None  # by the manifest that `lists_all` last agreed with

    @cached_property
    def codes(self) -> Mapping[Label, int]:
        """Each class's place in `labels`, by its label as stored."""
        stored = sorted(stored_labels(self.labels.tolist(), self.kind))
        return {label: code for code, label in enumerate(stored)}

    def lists_all(self, manifest: Mapping[str, Any]) -> bool:
        """Tell whether every class that a store's manifest lists is known.

        Raises
        ------
        StoreCorruptedError
            If it lists no usable classes.
        """
        listed = manifest.get("classes")
        if listed is not self._listed or listed is None:
            listed = manifest_classes(manifest)
            if listed != self._listed and not set(listed) <= self.codes.keys():
                return False
            self._listed = listed
        return True

    def changed(self, add: Iterable[Label] = (), remove: Iterable[Label] = ()) -> Classes:
        """Return the classes with others, as stored, added and removed."""
        wanted = (self.codes.keys() | set(add)) - set(remove)
        return self.replaced(wanted, self.kind)

    def replaced(self, stored: set[Label], kind: str) -> Classes:
        """Return other classes, as stored; the same object where they are the same."""
        return self if kind == self.kind and stored == self.codes.keys() else Classes(stored, kind)


class ClassNumbers:
    """Classes by number, for one question; one that turns up while counting is added behind the others.

    Parameters
    ----------
    classes : Classes
    unknown : int or str, optional
        What `UNKNOWN` stands for, as stored.
    """

    def __init__(self, classes: Classes, unknown: Label | None = None) -> None:
        self.kind = classes.kind
        self._classes, self._unknown = classes, unknown
        self._more: dict[Label, int] = {}

    def __len__(self) -> int:
        return len(self._classes.codes) + len(self._more)

    def codes(self, near: Neighbors) -> npt.NDArray[np.int64]:
        """Return each neighbor's class by number, shape (n, k); 0 where padded."""
        codes = np.zeros(near.labels.shape, dtype=np.int64)
        valid, known, more = near.valid, self._classes.codes, self._more
        labels = near.labels[valid].tolist()
        found = [known.get(label, -1) for label in labels]
        if -1 in found:
            for place, label in enumerate(labels):
                if label not in known:
                    found[place] = more.setdefault(label, len(self))
        codes[valid] = found
        return codes

    def of_classes(self, classes: Sequence[Label]) -> npt.NDArray[np.int64]:
        """Return the numbers of classes, as stored, shape (n,); those that are not known yet are added."""
        known, more = self._classes.codes, self._more
        found = [known.get(label, -1) for label in classes]
        for place, code in enumerate(found):
            if code < 0:
                found[place] = more.setdefault(classes[place], len(self))
        return np.array(found, dtype=np.int64)

    def stored(self) -> list[Label]:
        """Return all classes by their numbers, as stored."""
        return [*self._classes.codes, *self._more]

    @property
    def turned_up(self) -> list[Label]:
        """Classes that were found among neighbors only."""
        return list(self._more)

    def of_labels(self, labels: Iterable[Label]) -> npt.NDArray[np.int64]:
        """Return the class numbers of stored labels, shape (n,); -1 for a class that nobody can vote for."""
        known, more = self._classes.codes, self._more
        if self._unknown is not None:
            more = {self._unknown: UNKNOWN, **more}
        return np.array([known.get(label, more.get(label, -1)) for label in labels], dtype=np.int64)

    def labels(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the labels of class numbers, in the type that was fitted."""
        classes, places = self.classes(), self.columns()[codes] if self._more else codes
        away = codes == UNKNOWN
        if away.any() and self._unknown is not None:
            stored = stored_labels(classes.tolist(), self.kind)
            classes = class_array([*stored, self._unknown], self.kind, sort=False)
            places = np.where(away, len(stored), places)
        taken: npt.NDArray[Any] = classes[places]
        return taken

    def classes(self) -> npt.NDArray[Any]:
        """Return all classes, sorted, in the type that was fitted."""
        if not self._more:
            return self._classes.labels
        return class_array(self.stored(), self.kind)

    def columns(self) -> npt.NDArray[np.int64]:
        """Return the place in `classes` of each class number, shape (n_classes,)."""
        if not self._more:
            return np.arange(len(self))
        listed = class_array(self.stored(), self.kind, sort=False)
        return np.searchsorted(self.classes(), listed)
