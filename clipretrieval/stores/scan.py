"""What the scans of all stores have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from clipretrieval.errors import InvalidInputError
from clipretrieval.types import AnyArray, Label, Listing, as_label_array

__all__ = ["check_label", "listings"]

LISTED = 4096
"""Records in a listing."""


def check_label(label: Any) -> Label | None:
    """Return the label that is asked for as a plain int or str; None for all.

    Raises
    ------
    InvalidInputError
        If no record can have it.
    """
    if label is None:
        return None
    plain = label.item() if isinstance(label, np.generic) else label
    if type(plain) not in (int, str):
        raise InvalidInputError(f"label must be an int or a str, as it was stored, or None; found {label!r}")
    checked: Label = as_label_array([plain]).tolist()[0]
    return checked


def listings(ids: AnyArray, labels: AnyArray, label: Label | None) -> Iterator[Listing]:
    """Cut ids and labels into listings, of those with `label` unless it is None.

    Parameters
    ----------
    ids : ndarray of object (str), shape (n,)
    labels : ndarray of int64 or of object (str), shape (n,)
    label : int or str, optional
        One of the other type is that of none.
    """
    if label is not None:
        same_type = isinstance(label, str) == (labels.dtype == object)
        chosen = np.flatnonzero(labels == label) if same_type else np.empty(0, dtype=np.int64)
        ids, labels = ids[chosen], labels[chosen]
    for start in range(0, len(ids), LISTED):
        yield Listing(ids[start : start + LISTED], labels[start : start + LISTED])
