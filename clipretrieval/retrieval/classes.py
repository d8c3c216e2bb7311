"""The classes of an index, and their numbers while a question is answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    A question, or a change, costs what it names of them; only a change of the classes copies `labels`.

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
        self._take(class_array(stored, kind), kind)

    def _take(self, labels: npt.NDArray[Any], kind: str) -> None:
        self.labels, self.kind = labels, kind
        self._found: dict[Label, int] = {}  # the places that were asked for
        self._columns: tuple[Sequence[Label], npt.NDArray[np.int64]] | None = None
        # By the manifest that `lists_all` last agreed with, and whether that is all of them.
        self._listed: tuple[list[Label] | None, bool] = None, False
        self._next: tuple[list[Label], list[int], Classes] | None = None  # what the last change made of them

    def __getstate__(self) -> dict[str, Any]:
        return {"labels": self.labels, "kind": self.kind}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._take(state["labels"], state["kind"])

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, label: object) -> bool:
        return isinstance(label, int | str) and self.places([label])[0] >= 0

    def __iter__(self) -> Iterator[Label]:
        return iter(self.stored())

    @cached_property
    def codes(self) -> Mapping[Label, int]:
        """Each class's place in `labels`, by its label as stored; `places` is for some of them."""
        return {label: code for code, label in enumerate(self.stored())}

    def stored(self) -> list[Label]:
        """Return all classes, as stored, sorted."""
        listed: list[Label] = self.labels.tolist()
        return listed if self.kind in ("int", "str") else list(map(int, listed))

    def places(self, stored: Sequence[Label]) -> list[int]:
        """Return the place in `labels` of each label, as stored; -1 where it is no class."""
        known = self._found
        found = [known.get(label, -1) for label in stored]
        if -1 in found:
            absent = {label for label, place in zip(stored, found, strict=True) if place < 0}
            known.update(self._search(absent))
            found = [known.get(label, -1) for label in stored]
        return found

    def _search(self, stored: Iterable[Label]) -> dict[Label, int]:
        """Find those labels that are classes in the sorted array."""
        alike = [label for label in stored if isinstance(label, str) == (self.kind == "str")]
        if not alike or not len(self.labels):
            return {}
        wanted = np.empty(len(alike), dtype=self.labels.dtype)
        wanted[:] = alike  # what is cut off to the width of the others is told by the comparison
        places = np.minimum(self.labels.searchsorted(wanted), len(self.labels) - 1)
        held = self.labels[places].tolist()
        return {
            label: place
            for label, place, there in zip(alike, places.tolist(), held, strict=True)
            if there == label
        }

    def columns(self, classes: Sequence[Label]) -> npt.NDArray[np.int64]:
        """Return `places` of a sequence that does not change, of which the last is remembered."""
        known = self._columns
        if known is None or known[0] is not classes:
            all_ = len(classes) == len(self) and list(classes) == self.stored()
            places = np.arange(len(self)) if all_ else np.array(self.places(classes), dtype=np.int64)
            places.flags.writeable = False
            self._columns = known = classes, places
        return known[1]

    def lists_all(self, manifest: Mapping[str, Any]) -> bool:
        """Tell whether every class that a store's manifest lists is known.

        Raises
        ------
        StoreCorruptedError
            If it lists no usable classes.
        """
        listed = manifest.get("classes")
        known, whole = self._listed
        if listed is not None and listed is known:
            return True
        listed = manifest_classes(manifest)
        if listed != known:
            distinct = set(listed)
            if not distinct <= self.codes.keys():
                return False
            whole = len(distinct) == len(self)
        self._listed = listed, whole
        return True

    def listed_by(self, manifest: Mapping[str, Any]) -> Classes:
        """Return the classes that a manifest lists: these, where it lists them all and no other.

        Raises
        ------
        StoreCorruptedError
            If it lists no usable classes.
        """
        if self.lists_all(manifest) and self._listed[1]:
            return self
        listed = manifest_classes(manifest)
        found = Classes(listed, self.kind)
        found.agree(listed)
        return found

    def is_listed_by(self, manifest: Mapping[str, Any]) -> bool:
        """Tell whether a manifest lists these classes, as one did that was seen before; False in doubt."""
        listed, whole = self._listed
        return whole and manifest.get("classes") == listed

    def agree(self, listed: list[Label]) -> None:
        """Take note of a list, which nobody will change, of these classes and no other."""
        self._listed = listed, True

    def changed(self, add: Iterable[Label] = (), remove: Iterable[Label] = ()) -> Classes:
        """Return the classes with others, as stored, added and removed.

        The same object where none are; and where the last change is asked for again, the one that it made.
        """
        gone = set(remove)
        coming = list(set(add) - gone)
        new = sorted(label for label, place in zip(coming, self.places(coming), strict=True) if place < 0)
        places = sorted(place for place in self.places(list(gone)) if place >= 0)
        if not new and not places:
            return self
        last = self._next
        if last is None or last[:2] != (new, places):
            found = Classes.__new__(Classes)
            found._take(_edited(self.labels, self.kind, new, places), self.kind)
            self._next = last = new, places, found
        return last[2]


def _edited(labels: npt.NDArray[Any], kind: str, new: list[Label], places: Sequence[int]) -> npt.NDArray[Any]:
    """Return sorted labels without those at `places`, and with `new` ones, as `class_array` would make them.

    Parameters
    ----------
    labels : ndarray, shape (n,)
    kind : {"bool", "int", "float", "str"}
    new : list of int or of str
        As stored, sorted; none of them among the labels.
    places : sequence of int
        Ascending.
    """
    coming = class_array(new, kind, sort=False)
    if kind == "str" and object in (labels.dtype, coming.dtype):  # what is left may all be short, or none
        left = np.delete(labels, places).tolist()
        return class_array([*left, *new], kind)
    leaving, kept = labels[places], np.delete(labels, places)
    if new:
        kept = kept.astype(np.promote_types(kept.dtype, coming.dtype), copy=False)
        kept = np.insert(kept, kept.searchsorted(coming), coming)
    if kind == "str" and np.char.str_len(leaving).max(initial=0) * 4 == labels.dtype.itemsize:
        kept = kept.astype(f"U{np.char.str_len(kept).max(initial=1)}")  # the longest may have gone
    return kept


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
        return len(self._classes) + len(self._more)

    def codes(self, near: Neighbors) -> npt.NDArray[np.int64]:
        """Return each neighbor's class by number, shape (n, k); 0 where padded."""
        codes = np.zeros(near.labels.shape, dtype=np.int64)
        valid = near.valid
        codes[valid] = self._numbers(near.labels[valid].tolist())
        return codes

    def of_classes(self, classes: Sequence[Label]) -> npt.NDArray[np.int64]:
        """Return the numbers of classes, as stored, shape (n,); those that are not known yet are added.

        `classes` must not change: what was found of it is remembered.
        """
        found = self._classes.columns(classes)
        return found if found.min(initial=0) >= 0 else np.array(self._numbers(classes), dtype=np.int64)

    def _numbers(self, labels: Sequence[Label]) -> list[int]:
        found, more = self._classes.places(labels), self._more
        if -1 in found:
            for place, code in enumerate(found):
                if code < 0:
                    found[place] = more.setdefault(labels[place], len(self))
        return found

    def stored(self) -> list[Label]:
        """Return all classes by their numbers, as stored."""
        return [*self._classes.stored(), *self._more]

    @property
    def turned_up(self) -> list[Label]:
        """Classes that were found among neighbors only."""
        return list(self._more)

    def of_labels(self, labels: Iterable[Label]) -> npt.NDArray[np.int64]:
        """Return the class numbers of stored labels, shape (n,); -1 for a class that nobody can vote for."""
        listed, more = list(labels), self._more
        if self._unknown is not None:
            more = {self._unknown: UNKNOWN, **more}
        found = self._classes.places(listed)
        return np.array(
            [code if code >= 0 else more.get(label, -1) for label, code in zip(listed, found, strict=True)],
            dtype=np.int64,
        )

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
