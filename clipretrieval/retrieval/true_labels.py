"""What images that are not stored are labelled with, checked against what was fitted."""

from __future__ import annotations

from typing import Any

from clipretrieval.errors import InvalidInputError
from clipretrieval.images.sources import check_class_names, class_names
from clipretrieval.retrieval.labelled_index import LabelledIndex

__all__ = ["check_kind", "check_truth"]


def check_truth(index: LabelledIndex, X: Any, y: Any) -> None:
    """Refuse vectors, which bring no labels of their own, without any, and integers of other classes."""
    if y is not None:
        return
    if index.encoder is None:
        raise InvalidInputError("the true labels are missing; pass one for each vector")
    check_class_names(index.class_names, class_names(X))


def check_kind(kind: str, fitted: str) -> None:
    """Refuse true labels of a type that no answer can be equal to."""
    numbers = {"int", "float"}
    if kind != fitted and not {kind, fitted} <= numbers:
        raise InvalidInputError(
            f"the labels given are of the type {kind}, but the classifier was fitted on {fitted}; pass "
            "labels of the same type"
        )
