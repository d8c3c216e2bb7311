"""The classes that can be voted for, fixed in order while a question is answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from clipretrieval._labels import class_array, stored_labels
from clipretrieval.types import AnyArray, Label, Neighbors

__all__ = ["CLASSES_LOCK", "Ballot"]

CLASSES_LOCK = threading.Lock()
"""Held while any classifier's ``classes_`` is replaced; a lock in an estimator could not be copied."""

if hasattr(os, "register_at_fork"):  # a forked process would wait for a thread that it does not have
    os.register_at_fork(
        before=CLASSES_LOCK.acquire,
        after_in_parent=CLASSES_LOCK.release,
        after_in_child=CLASSES_LOCK.release,
    )


class Ballot:
    """Classes by number; one that turns up while counting is added behind the others.

    Parameters
    ----------
    classes : iterable of int or of str
        As stored, without repeats.
    kind : {"bool", "int", "float", "str"}
        The type of the labels that were fitted.
    """

    def __init__(self, classes: Iterable[Label], kind: str) -> None:
        self.kind = kind
        self._classes: list[Label] = sorted(set(classes))
        self._first = len(self._classes)
        self._codes = {label: code for code, label in enumerate(self._classes)}

    def __len__(self) -> int:
        return len(self._classes)

    def codes(self, near: Neighbors) -> npt.NDArray[np.int64]:
        """Return each neighbour's class by number, shape (n, k); 0 where padded."""
        codes = np.zeros(near.labels.shape, dtype=np.int64)
        valid = near.valid
        known = self._codes
        found = []
        for label in near.labels[valid].tolist():
            if label not in known:
                known[label] = len(self._classes)
                self._classes.append(label)
            found.append(known[label])
        codes[valid] = found
        return codes

    @property
    def turned_up(self) -> list[Label]:
        """Classes that were found among neighbours only."""
        return self._classes[self._first :]

    def numbers(self, labels: Iterable[Label]) -> npt.NDArray[np.int64]:
        """Return the class numbers of stored labels, shape (n,); -1 for a class that nobody can vote for."""
        return np.array([self._codes.get(label, -1) for label in labels], dtype=np.int64)

    def labels(self, codes: npt.NDArray[np.int64]) -> AnyArray:
        """Return the labels of class numbers, in the type that was fitted."""
        order = self.classes()
        ranks = np.searchsorted(order, class_array(self._classes, self.kind, sort=False))
        taken: AnyArray = order[ranks[codes]]
        return taken

    def classes(self) -> AnyArray:
        """Return all classes, sorted, in the type that was fitted."""
        return class_array(self._classes, self.kind)

    def columns(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Put the columns of scores, one a class number, into the order of `classes`."""
        order = np.argsort(class_array(self._classes, self.kind, sort=False), kind="stable")
        return scores[:, order]

    @staticmethod
    def of(classes: AnyArray, kind: str, more: Iterable[Label]) -> Ballot:
        """Join fitted classes with those that the store knows by now."""
        return Ballot([*stored_labels(classes.tolist(), kind), *more], kind)
