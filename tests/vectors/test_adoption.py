"""A store that something else has filled, made a classifier's."""

from __future__ import annotations

import numpy as np
import pytest
from own_encoder import Quarters

from clipretrieval import (
    DimensionMismatchError,
    FingerprintMismatchError,
    InvalidInputError,
    RetrievalClassifier,
    StoreCorruptedError,
)
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore


@pytest.mark.parametrize("kind", [MemoryStore, FaissStore, ChromaStore])
@pytest.mark.parametrize("labels", [["a", "ü"], [5, -2]], ids=["str", "int"])
def test_a_store_that_upsert_has_filled_answers_as_one_that_was_fitted(kind, labels, clouds):
    """Before it is adopted nobody takes it; then it is attached to, added to and asked as any other."""
    vectors, _, asked = clouds
    store = kind()
    store.upsert([f"n{number}" for number in range(180)], vectors, labels * 90)
    with pytest.raises(InvalidInputError, match="adopt_store"):
        RetrievalClassifier.from_store(store)
    with pytest.raises(StoreCorruptedError, match="adopt_store"):
        RetrievalClassifier(store=store).fit(vectors, labels * 90, resume=True)
    adopted = RetrievalClassifier.adopt_store(store, k=3)
    fitted = RetrievalClassifier(store="memory", k=3).fit(vectors, labels * 90)
    assert adopted.classes_.tolist() == fitted.classes_.tolist() == sorted(labels)
    assert adopted.predict(asked).tolist() == fitted.predict(asked).tolist()
    attached = RetrievalClassifier.from_store(store, head="discriminant")
    attached.partial_fit(vectors[:1] + 9, labels[:1])
    assert attached.store_.count() == 181
    with pytest.raises(InvalidInputError, match="from_store"):
        RetrievalClassifier.adopt_store(store)


def test_the_encoder_that_is_named_is_the_only_one_from_then_on(class_folder):
    """Its fingerprint is in the manifest, beside what the owner keeps there."""
    encoder, store = Quarters(), FaissStore()
    fitted = RetrievalClassifier(encoder, "memory").fit(class_folder / "train")
    names = [name for listing in fitted.store_.scan() for name in listing.ids.tolist()]
    records = fitted.store_.get(names)
    store.upsert(names, records.vectors, records.labels.tolist())
    store.write_manifest({"owner": "me"})
    adopted = RetrievalClassifier.adopt_store(store, encoder)
    assert store.read_manifest()["owner"] == "me"
    asked = class_folder / "test"
    assert adopted.predict(asked).tolist() == fitted.predict(asked).tolist()
    with pytest.raises(FingerprintMismatchError, match="scale"):
        RetrievalClassifier.from_store(store, Quarters(2.0))


def test_what_cannot_be_true_of_the_vectors_is_refused():
    """Another dimension, lengths, a store that is empty, and another metric than its own."""
    store = MemoryStore()
    with pytest.raises(InvalidInputError, match="nothing to adopt"):
        RetrievalClassifier.adopt_store(store)
    store.upsert(["x", "y"], np.eye(2) * 3, ["a", "b"])
    with pytest.raises(DimensionMismatchError, match="dimension 2, and the encoder's have 12"):
        RetrievalClassifier.adopt_store(store, Quarters())
    with pytest.raises(InvalidInputError, match="'x' has length 3"):
        RetrievalClassifier.adopt_store(store, normalize=True)
    with pytest.raises(InvalidInputError, match="metric"):
        RetrievalClassifier.adopt_store(store, metric="cosine")
    with pytest.raises(InvalidInputError, match="refit_transform"):
        RetrievalClassifier.adopt_store(store, transform="whiten")
    many = MemoryStore()
    many.upsert([f"{row:05}" for row in range(5000)], [[1, 0]] * 5000, ["a"] * 5000)
    many.upsert(["04999"], [[0, 9]], ["a"])
    with pytest.raises(InvalidInputError, match="'04999' has length 9"):
        RetrievalClassifier.adopt_store(many, normalize=True)
    store.upsert(["z"], np.eye(1, 2), ["a\0"])
    with pytest.raises(InvalidInputError, match="NUL"):
        RetrievalClassifier.adopt_store(store)
    assert store.read_manifest() == {}
    mapped = RetrievalClassifier(store="memory", transform="whiten").fit(np.eye(4), [*"abab"]).store_
    mapped.write_manifest({})
    with pytest.raises(InvalidInputError, match="transform"):
        RetrievalClassifier.adopt_store(mapped)
