"""Fits that fail, or are cut short, on stores that hold something already."""

from __future__ import annotations

import sys

import pytest
from colours import colour, pairs

from clipretrieval import (
    FingerprintMismatchError,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    StoreError,
)
from clipretrieval.encoding.engine.engine import Engine
from clipretrieval.stores import FaissStore, MemoryStore


def failing(images, error):
    """Yield labelled pictures, then fail."""
    yield from zip(*images, strict=True)
    raise error


class FailingDeletes(MemoryStore):
    """A store whose deletions fail half way, once."""

    fail = True

    def delete(self, ids):
        if self.fail:
            super().delete(list(ids)[::2])
            raise StoreError("the connection was cut")
        return super().delete(ids)


def test_an_overwrite_that_fails_early_keeps_what_was_there(encoder, any_store):
    """Fewer new images than go into the store together have come: nothing is removed for them."""
    classifier = RetrievalClassifier(encoder, any_store).fit(*pairs(range(128)))
    with pytest.raises(OSError, match="the disk went away") as caught:
        classifier.fit(failing(pairs(range(1022, 1032)), OSError("the disk went away")), overwrite=True)
    assert any_store.count() == 128
    assert classifier.predict([colour(5)]).tolist() == ["shade 0"]
    if sys.version_info >= (3, 11):
        assert "overwrite=True" in caught.value.__notes__[0]
    classifier.fit(*pairs(range(1022, 1032)), overwrite=True)
    assert any_store.count() == 10


def test_an_overwrite_that_fails_later_is_gone_on_with(encoder, any_store):
    """When the old is gone, resume adds to the new."""
    classifier = RetrievalClassifier(encoder, any_store).fit(*pairs(range(128)))
    with pytest.raises(OSError, match="the disk went away") as caught:
        classifier.fit(
            failing(pairs(range(1000, 1050)), OSError("the disk went away")), overwrite=True, flush_every=16
        )
    assert any_store.get(classifier.kneighbors([colour(1000)]).ids[0]).labels.tolist() == ["shade 15"]
    assert any_store.count() == 50
    if sys.version_info >= (3, 11):
        assert "resume=True" in caught.value.__notes__[0]
    encoded = encoder.encoded
    classifier.fit(*pairs(range(1000, 1060)), resume=True)
    assert any_store.count() == 60
    assert encoder.encoded == encoded + 10


def test_a_clearing_that_was_cut_short_is_finished(encoder):
    """What is left of the old is never mixed with the new."""
    store = FailingDeletes()
    RetrievalClassifier(encoder, store).fit(*pairs(range(128)))
    with pytest.raises(StoreError, match="cut"):
        RetrievalClassifier(encoder, store).fit(*pairs(range(1014, 1034)), overwrite=True)
    assert store.count() == 64
    store.fail = False
    for classifier in (RetrievalClassifier(encoder, store), RetrievalClassifier.from_store(store, encoder)):
        with pytest.raises(InvalidInputError, match="64 old vectors are left"):
            classifier.partial_fit(*pairs(range(1014, 1015)))
        assert store.count() == 64
    classifier = RetrievalClassifier(encoder, store).fit(*pairs(range(1014, 1034)), resume=True)
    assert store.count() == 20
    assert classifier.classes_.tolist() == ["shade 15", "shade 16"]
    assert "clearing" not in store.read_manifest()


def test_the_store_of_changed_arguments_is_another_one(tmp_path):
    """Adding goes on in the store at hand; a fit after it fills the new one and leaves the old alone."""
    old, new = ({"path": tmp_path / name} for name in ("old", "new"))
    classifier = RetrievalClassifier(k=1, store="faiss", store_options=old).fit([[0.0], [1.0]], ["a", "b"])
    classifier.set_params(store_options=new).partial_fit([[2.0]], ["b"])
    classifier.store_.flush()
    kept = classifier.store_
    classifier.fit([[5.0], [6.0]], ["c", "d"], overwrite=True)
    assert (kept.count(), classifier.store_.count()) == (3, 2)
    assert (tmp_path / "new").exists()


def test_a_classifier_whose_store_was_filled_anew_says_so(encoder, any_store):
    """The labels are of another type now: nothing can be answered in the old one."""
    classifier = RetrievalClassifier(encoder, any_store).fit([colour(1), colour(900)], [3, 4])
    RetrievalClassifier(encoder, any_store).fit([colour(1), colour(900)], ["a", "b"], overwrite=True)
    with pytest.raises(StoreError, match="from_store"):
        classifier.predict([colour(1)])
    again = RetrievalClassifier.from_store(any_store, encoder)
    assert again.predict([colour(1)]).tolist() == ["a"]


def test_an_interrupted_fit_keeps_what_was_encoded(encoder, tmp_path):
    """Ctrl-C is a failure like any other: what came before it is on disk, and resume goes on."""
    with FaissStore(tmp_path / "index") as store:
        classifier = RetrievalClassifier(encoder, store)
        with pytest.raises(KeyboardInterrupt):
            classifier.fit(failing(pairs(range(300)), KeyboardInterrupt()))
    encoded = encoder.encoded
    with FaissStore(tmp_path / "index") as store:
        assert store.count() == encoded > 200
        RetrievalClassifier(encoder, store).fit(*pairs(range(300)), resume=True)
        assert store.count() == 300
    assert encoder.encoded == 300


def test_a_bad_label_costs_only_what_came_with_it(encoder, tmp_path):
    """Images stored before it are durable, though nobody closes the store."""
    images = [*zip(*pairs(range(200)), strict=True), (colour(999), 7)]
    store = FaissStore(tmp_path / "index")
    with pytest.raises(InvalidInputError, match="one type"):
        RetrievalClassifier(encoder, store).fit(iter(images), flush_every=16)
    kept = store.count()
    assert kept >= 184
    with FaissStore(tmp_path / "index", read_only=True) as seen:
        assert seen.count() == kept
    store.close()


def test_another_metric_is_refused_though_everything_was_forgotten(encoder, any_store):
    """An empty store still has its metric."""
    classifier = RetrievalClassifier(encoder, any_store).fit([colour(1), colour(2)], ["a", "b"])
    for label in ("a", "b"):
        classifier.forget(label=label)
    classifier.set_params(metric="cosine")
    with pytest.raises(FingerprintMismatchError, match="metric"):
        classifier.partial_fit([colour(1)], ["a"])
    assert any_store.count() == 0


def test_a_class_forgotten_meanwhile_stays_forgotten(encoder, any_store):
    """A long question that began before does not bring it back when it ends."""
    classifier = RetrievalClassifier(encoder, any_store).fit([colour(1), colour(900)], ["a", "b"])

    def forgetful():
        yield colour(1)
        classifier.forget(label="b")
        yield colour(2)

    assert classifier.predict(forgetful()).tolist() == ["a", "a"]
    assert classifier.classes_.tolist() == ["a"]


def test_no_more_is_encoded_ahead_than_a_flush_interval(tiny_model, class_folder, tmp_path, monkeypatch):
    """Whatever the encoder's own batches are: what is encoded and not yet durable stays within it."""
    files = sorted((class_folder / "train").rglob("*.*g"))
    # What follows the end of an image in a file is not decoded, but makes another file of it.
    images = [file.read_bytes() + bytes([number]) for number in range(8) for file in files]
    encoded, durable, most = 0, 0, 0
    run, flush = Engine.run, FaissStore.flush

    def counted(self, squares, stages):
        nonlocal encoded, most
        encoded += len(squares)
        most = max(most, encoded - durable)
        return run(self, squares, stages)

    def flushed(self):
        nonlocal durable
        flush(self)
        durable = self.count()

    monkeypatch.setattr(Engine, "run", counted)
    monkeypatch.setattr(FaissStore, "flush", flushed)
    with FaissStore(tmp_path / "index") as store:
        classifier = RetrievalClassifier(StagedEncoder(tiny_model, stage="mid"), store)
        classifier.fit(images, [file.parent.name for file in files] * 8, flush_every=32)
    assert (encoded, durable) == (192, 192)
    assert most <= 32
