"""Labels as users have them, and as stores keep them (int or str)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from clipretrieval.errors import InvalidInputError
from clipretrieval.types import AnyArray, Label

__all__ = ["class_array", "label_kind", "stored_labels"]

_KINDS = {bool: "bool", int: "int", float: "float", str: "str"}


def label_kind(labels: Iterable[Any], known: str | None = None) -> str:
    """Tell the common type of some labels.

    Parameters
    ----------
    labels : iterable of bool, int, float or str
        NumPy scalars count as what they hold.
    known : str, optional
        The kind that they have to be of.

    Returns
    -------
    {"bool", "int", "float", "str"}

    Raises
    ------
    InvalidInputError
        If a label is None or of another type, or the types are mixed.
    """
    types = {type(label.item() if isinstance(label, np.generic) else label) for label in labels}
    if type(None) in types:
        raise InvalidInputError(
            "some images have no label; pass labels, or pairs (image, label), or a folder with a sub-folder "
            "for each class"
        )
    strange = [kind.__name__ for kind in types if kind not in _KINDS]
    if strange:
        raise InvalidInputError(f"labels must be int or str; found {', '.join(sorted(strange))}")
    kinds = {_KINDS[kind] for kind in types} | ({known} if known else set())
    if len(kinds) != 1:
        raise InvalidInputError(
            f"labels must all be of one type; found {' and '.join(sorted(kinds)) or 'no label at all'}"
        )
    return kinds.pop()


def stored_labels(labels: Iterable[Any], kind: str) -> list[Label]:
    """Turn labels of one kind into what a store keeps."""
    plain = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if kind == "str":
        return plain
    if kind == "float" and any(label != int(label) for label in plain):
        raise InvalidInputError("labels that are floats must be whole numbers; pass classes, not quantities")
    return [int(label) for label in plain]


def class_array(classes: Iterable[Label], kind: str) -> AnyArray:
    """Sort distinct stored labels into an array of the type that was fitted."""
    dtype: Any = {"bool": np.bool_, "int": np.int64, "float": np.float64, "str": np.str_}[kind]
    return np.array(sorted(set(classes)), dtype=dtype)
