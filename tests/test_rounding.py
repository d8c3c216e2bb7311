"""Vectors are float32: what does not fit is refused or told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from clipretrieval import ClipRetrievalWarning, InvalidInputError, RetrievalClassifier
from clipretrieval.stores import FaissStore, MemoryStore


@pytest.mark.parametrize(
    ("value", "kept"),
    [(2**53 + 1, "9007199254740992"), (2.0**24 + 1, "16777216"), (-(2**24) - 1, "-16777216")],
)
def test_whole_numbers_that_are_rounded_are_told(value: float, kept: str) -> None:
    """Whole numbers that float32 does not hold are named, with what becomes of them."""
    with pytest.warns(ClipRetrievalWarning, match=f"in row 1 becomes {kept}") as caught:
        RetrievalClassifier(store="memory").fit([[0, 0], [value, 1]], ["a", "b"])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("store", [MemoryStore, FaissStore])
def test_stores_tell_too(store: type) -> None:
    """A store that is given whole numbers beyond float32 warns by itself."""
    with pytest.warns(ClipRetrievalWarning, match="cannot hold some of the values: 16777217 in row 0"):
        store().upsert(["x"], np.array([[2**24 + 1, 0]]), ["a"])


def test_vanished_vectors_are_told() -> None:
    """A vector whose values are all too small for float32 is named."""
    with pytest.warns(ClipRetrievalWarning, match="1e-300 in row 1 becomes 0.0"):
        RetrievalClassifier(store="memory").fit([[0.5, 0.0], [1e-300, 0.0]], ["a", "b"])


@pytest.mark.parametrize("value", [1e300, 10**400, -1e39])
def test_what_is_beyond_float32_is_refused(value: float) -> None:
    """Values beyond ±3.4·10³⁸ are refused, in a fit as in a question."""
    classifier = RetrievalClassifier(store="memory")
    with pytest.raises(InvalidInputError):
        classifier.fit([[value, 0.0], [0.0, 1.0]], ["a", "b"])
    classifier.fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
    with pytest.raises(InvalidInputError):
        classifier.predict([[value, 0.0]])


def test_ordinary_rounding_is_no_news() -> None:
    """Fractions, small whole numbers and exact large ones are taken without a word."""
    rows = np.array([[0.1, 1 / 3], [255.0, 2.0**40], [1e-50, 1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RetrievalClassifier(store="memory").fit(rows, ["a", "b", "b"]).predict(rows)
