"""Labels as users have them, and as stores keep them (int or str)."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from clipretrieval._util.checks import shown
from clipretrieval._util.foreign import first_missing, plain_value
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import AnyArray, Label

__all__ = [
    "WIDEST",
    "Spelling",
    "check_labelled",
    "class_array",
    "composed",
    "fitted_labels",
    "label_kind",
    "stored_labels",
]

WIDEST = 256
"""Characters of the longest label up to which labels have NumPy's fixed width; no folder's name is longer."""

_KINDS = {bool: "bool", int: "int", float: "float", str: "str"}
_TYPES: dict[str, Callable[[Any], Any]] = {name: kind for kind, name in _KINDS.items()}
_DTYPES: dict[str, Any] = {"bool": np.bool_, "int": np.int64, "float": np.float64, "str": np.str_}
WHOLE_FLOATS = 2**53
"""Below this, a float64 holds every whole number."""


def check_labelled(labels: Sequence[Any], places: Sequence[int] | None = None) -> None:
    """Refuse labels of which one is missing: None, NaN, NaT, or pandas's NA.

    Parameters
    ----------
    labels : sequence
    places : sequence of int, optional
        Where the records lie that they belong to, for the message, which names the first one without a label;
        when left out, in this order.
    """
    row = first_missing(labels)
    if row is None:
        return
    if all(label is None for label in labels):
        raise InvalidInputError(
            "some images have no label; pass labels, or pairs (image, label), or a folder with a sub-folder "
            "for each class"
        )
    place = row if places is None else places[row]
    raise InvalidInputError(
        f"row {place} (counted from 0) has no label: it is {shown(labels[row])}; give it one, or leave the "
        "row out"
    )


def label_kind(
    labels: Iterable[Any],
    known: str | None = None,
    holder: str = "those given before them",
    places: Sequence[int] | None = None,
) -> str:
    """Tell the common type of some labels: ``"bool"``, ``"int"``, ``"float"`` or ``"str"``.

    Scalars of NumPy and Arrow, and tensors of one element, count as what they hold.

    Parameters
    ----------
    labels : iterable of bool, int, float or str
    known : str, optional
        The kind that they have to be of.
    holder : str
        Whose kind that is, in an error's words.
    places : sequence of int, optional
        As for `check_labelled`.

    Raises
    ------
    InvalidInputError
        If a label is missing or of another type, or the types are mixed.
    """
    plain = _plain_labels(labels)
    types = set(map(type, plain))
    if not types <= {bool, int, str}:
        check_labelled(plain, places)
    strange = [kind.__name__ for kind in types if kind not in _KINDS]
    if strange:
        advice = "; decode them, as with label.decode()" if "bytes" in strange else ""
        raise InvalidInputError(f"labels must be int or str; found {', '.join(sorted(strange))}{advice}")
    kinds = {_KINDS[kind] for kind in types} or ({known} if known else set())
    if len(kinds) != 1:
        raise InvalidInputError(
            f"labels must all be of one type; found {' and '.join(sorted(kinds)) or 'no label at all'}"
        )
    kind = kinds.pop()
    if kind == "float":
        check_whole_floats(plain)
    if known not in (None, kind):
        raise InvalidInputError(
            f"labels must all be of one type: those given are {kind}, and {holder} {known}. Pass {known} "
            "labels (a folder's are str, the names of its sub-folders), or fit anew with all of them as "
            f"{kind}"
        )
    return kind


def check_whole_floats(labels: Iterable[float]) -> None:
    """Refuse numbers so large that floats cannot tell them from their neighbors."""
    large = next((label for label in labels if math.isfinite(label) and abs(label) >= WHOLE_FLOATS), None)
    if large is not None:
        raise InvalidInputError(
            f"labels that are floats must be smaller than 2**53, as floats beyond cannot tell whole numbers "
            f"apart; found {shown(large)}. Fit on int, or on str"
        )


def stored_labels(labels: Iterable[Any], kind: str, fitted: str | None = None) -> list[Label]:
    """Turn labels of one kind into what a store keeps.

    Parameters
    ----------
    labels : iterable of bool, int, float or str
    kind : {"bool", "int", "float", "str"}
    fitted : {"bool", "int", "float", "str"}, optional
        The kind in which a classifier returns them, where that is another.

    Raises
    ------
    InvalidInputError
        If a label cannot be kept as it is: a float that is no whole number, an int beyond 64 bits (where
        floats were fitted, beyond 53), a string that is not valid Unicode or ends with NUL, as NumPy drops
        that.
    """
    plain = _plain_labels(labels)
    if kind == "str":
        for label in set(plain):
            _check_label_text(label)
        return plain
    if kind == "float" and any(not math.isfinite(label) or label != int(label) for label in plain):
        raise InvalidInputError(
            "Unknown label type: continuous. Labels that are floats must be whole numbers; pass classes, not "
            "quantities"
        )
    if fitted == "float":
        check_whole_floats(plain)
    whole: list[Label] = [int(label) for label in plain]
    extremes = [int(label) for label in (min(plain), max(plain))] if plain else [0]
    if not -(2**63) <= extremes[0] <= extremes[-1] < 2**63:
        raise InvalidInputError("integer labels must fit 64 signed bits; pass smaller ones, or strings")
    return whole


def composed(name: str) -> str:
    """Return a name with composed letters (NFC); some file systems write accents on their own."""
    return unicodedata.normalize("NFC", name)


class Spelling:
    """How classes, given as they are stored, are spelled, whatever Unicode form a label has.

    Parameters
    ----------
    classes : collection of int or of str
        One that is no list is asked again and again what is in it.
    """

    def __init__(self, classes: Collection[Label] = ()) -> None:
        self._classes = set(classes) if isinstance(classes, list | tuple) else classes
        self._forms: dict[str, str] = {}

    def apply(self, labels: list[Label]) -> list[Label]:
        """Return labels, each spelled as the class from which it differs in its Unicode form alone."""
        if not len(self._classes):
            return labels
        strange = {label for label in labels if isinstance(label, str) and label not in self._classes}
        if not strange:
            return labels
        if not self._forms:
            self._forms = {composed(known): known for known in self._classes if isinstance(known, str)}
        spelled: dict[Label, Label] = {label: self._forms.get(composed(label), label) for label in strange}
        return [spelled.get(label, label) for label in labels]


def class_array(classes: Iterable[Label], kind: str, *, sort: bool = True) -> AnyArray:
    """Return distinct stored labels in an array of the type that was fitted, sorted unless told.

    Strings have NumPy's fixed width, four bytes a character of the longest. Where one is longer than
    `WIDEST`, the array is of objects, which are str: otherwise each label would take as much as that one.
    """
    listed = sorted(set(classes)) if sort else list(classes)
    if kind == "str" and max(map(len, map(str, listed)), default=0) > WIDEST:
        return np.array(listed, dtype=object)
    return np.array(listed, dtype=_DTYPES[kind])


def fitted_labels(labels: Iterable[Label], kind: str) -> list[Any]:
    """Return stored labels as plain values of the type that was fitted."""
    return [_TYPES[kind](label) for label in labels]


def _plain_labels(labels: Iterable[Any]) -> list[Any]:
    listed = list(labels)
    return listed if set(map(type, listed)) <= set(_KINDS) else [plain_value(label) for label in listed]


def _check_label_text(label: str) -> None:
    try:
        label.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"the label {label!r} is not valid Unicode (a folder's name in another encoding?); rename it"
        ) from error
    if label.endswith("\0"):
        raise InvalidInputError(f"the label {label!r} ends with a NUL character; strip it")
