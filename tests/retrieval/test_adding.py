"""partial_fit, overwrite and resume: what a fit does to a store that holds things already."""

from __future__ import annotations

import numpy as np
import pytest
from colours import Colours, colour, pairs

from clipretrieval import (
    DimensionMismatchError,
    FingerprintMismatchError,
    FitReport,
    ImageDecodeError,
    InvalidInputError,
    RetrievalClassifier,
    UnsupportedOperationError,
)
from clipretrieval.stores import FaissStore, MemoryStore

QUESTIONS = [colour(number) for number in range(3, 512, 7)]


def counts(report: FitReport) -> tuple[int, int, int]:
    return report.new, report.already_there, report.relabelled


def answers(classifier: RetrievalClassifier):
    near = classifier.kneighbors(QUESTIONS, 5)
    return near.ids.tolist(), near.distances.tolist(), classifier.predict(QUESTIONS).tolist()


def test_parts_in_any_order_give_what_one_fit_gives(encoder, any_store):
    """Seven uneven parts, shuffled: the same neighbours, distances and answers as one fit."""
    numbers = np.random.default_rng(0).permutation(512)
    whole = RetrievalClassifier(encoder, "memory", k=5).fit(*pairs(range(512)))
    parts = RetrievalClassifier(encoder, any_store, k=5)
    for part in np.split(numbers, [1, 3, 40, 41, 200, 500]):
        assert parts.partial_fit(*pairs(part.tolist())) is parts
    assert answers(parts) == answers(whole)
    assert parts.classes_.tolist() == whole.classes_.tolist()


def test_a_class_may_come_later(encoder, any_store):
    """Whatever is added is answered at once, under its own label."""
    classifier = RetrievalClassifier(encoder, any_store).fit(*pairs(range(128)))
    assert classifier.predict([colour(200)]).tolist() == ["shade 1"]
    classifier.partial_fit([colour(199)], ["new"])
    assert classifier.classes_.tolist() == ["new", "shade 0", "shade 1"]
    assert classifier.predict([colour(200)]).tolist() == ["new"]
    assert classifier.predict_proba([colour(200)]).tolist() == [[1.0, 0.0, 0.0]]


def test_what_is_there_is_neither_encoded_nor_stored_again(encoder, any_store):
    """Adding pictures twice changes nothing, in one call as in several."""
    images, labels = pairs([*range(100), 7, 7])
    classifier = RetrievalClassifier(encoder, any_store, k=5).fit(images, labels)
    assert counts(classifier.fit_report_) == (100, 2, 0)
    before, encoded = answers(classifier), encoder.encoded
    classifier.partial_fit(images, labels)
    assert counts(classifier.fit_report_) == (0, 102, 0)
    assert encoder.encoded == encoded
    assert (any_store.count(), answers(classifier)) == (100, before)


@pytest.mark.filterwarnings("ignore:.*given under several labels:clipretrieval.ClipRetrievalWarning")
def test_a_repeat_of_a_known_picture_may_have_another_label(encoder, any_store):
    """One picture is there and comes three times: the last label counts, and nothing is encoded."""
    classifier = RetrievalClassifier(encoder, any_store).fit([colour(1), colour(900)], ["a", "b"])
    encoded = encoder.encoded
    classifier.partial_fit([colour(1), colour(2), colour(1), colour(1)], ["a", "a", "b", "c"])
    assert encoder.encoded == encoded + 1
    assert counts(classifier.fit_report_) == (1, 1, 2)
    assert any_store.count() == 3
    near = classifier.kneighbors([colour(1)], 2)
    assert near.distances[0].tolist() == [0.0, 1.0]
    assert near.labels[0].tolist() == ["c", "a"]


def test_repeats_that_an_old_store_holds_stay_and_are_found(encoder, any_store):
    """Copies with a suffix answer as before; adding their image again finds the one without."""
    RetrievalClassifier(encoder, any_store).fit([colour(1), colour(900)], ["a", "b"])
    plain = RetrievalClassifier.from_store(any_store, encoder).kneighbors([colour(1)]).ids[0, 0]
    vector = any_store.get([plain]).vectors
    any_store.upsert([f"{plain}-2", f"{plain}-3"], np.repeat(vector, 2, axis=0), ["c", "c"], [{}, {}])
    classifier = RetrievalClassifier.from_store(any_store, encoder, k=3)
    assert classifier.kneighbors([colour(1)]).ids[0].tolist() == [plain, f"{plain}-2", f"{plain}-3"]
    classifier.partial_fit([colour(1), colour(1), colour(2)], ["a", "a", "a"])
    assert counts(classifier.fit_report_) == (1, 2, 0)
    assert any_store.count() == 5
    classifier.partial_fit([colour(1)], ["b"])
    assert counts(classifier.fit_report_) == (0, 0, 1)
    assert classifier.kneighbors([colour(1)]).labels[0].tolist() == ["b", "c", "c"]
    assert classifier.forget([f"{plain}-2", f"{plain}-3"]).remaining == 3


def test_another_label_corrects_the_one_before(encoder, any_store):
    """The last word counts; the vector stays as it was."""
    classifier = RetrievalClassifier(encoder, any_store).fit([colour(1), colour(900)], ["a", "b"])
    vector = any_store.get([classifier.kneighbors([colour(1)]).ids[0, 0]]).vectors
    classifier.partial_fit([colour(1)], ["c"])
    assert counts(classifier.fit_report_) == (0, 0, 1)
    assert any_store.count() == 2
    assert classifier.predict([colour(1)]).tolist() == ["c"]
    again = any_store.get([classifier.kneighbors([colour(1)]).ids[0, 0]])
    np.testing.assert_array_equal(again.vectors, vector)


def test_partial_fit_starts_an_unfitted_classifier(encoder):
    """As scikit-learn has it; classes named beforehand have a column before they have a picture."""
    classifier = RetrievalClassifier(encoder, "memory").partial_fit([colour(1)], ["a"], classes=["a", "z"])
    assert classifier.classes_.tolist() == ["a", "z"]
    assert classifier.predict_proba([colour(1)]).tolist() == [[1.0, 0.0]]
    classifier.partial_fit([colour(900)], ["z"])
    assert classifier.predict([colour(899)]).tolist() == ["z"]


def test_a_filled_store_wants_to_know_what_is_meant(encoder, any_store):
    """Without a word it is refused and stays as it is; both words at once are refused as well."""
    RetrievalClassifier(encoder, any_store).fit(*pairs(range(60, 70)))
    another = RetrievalClassifier(encoder, any_store)
    with pytest.raises(InvalidInputError, match=r"holds 10 vectors: pass resume=True .*overwrite=True"):
        another.fit(*pairs(range(70, 80)))
    with pytest.raises(InvalidInputError, match="exclude each other"):
        another.fit(*pairs(range(70, 80)), overwrite=True, resume=True)
    assert any_store.count() == 10
    assert not hasattr(another, "store_")


def test_overwrite_leaves_only_the_new(encoder, any_store):
    """Old ids, labels and classes are gone."""
    classifier = RetrievalClassifier(encoder, any_store).fit(*pairs(range(60, 70)))
    old = classifier.kneighbors([colour(61)], 10).ids[0].tolist()
    with pytest.warns(UserWarning, match="only one class"):
        classifier.fit([colour(900)], ["b"], overwrite=True)
    assert classifier.classes_.tolist() == ["b"]
    assert any_store.count() == 1
    assert len(any_store.get(old)) == 0
    assert any_store.read_manifest()["classes"] == ["b"]


def test_an_overwrite_without_a_usable_picture_clears_nothing(encoder, any_store):
    """What is there goes when the first new pictures are encoded, not before."""
    classifier = RetrievalClassifier(encoder, any_store).fit(*pairs(range(60, 70)))
    with pytest.raises(ImageDecodeError):
        classifier.fit([b"no picture"], ["b"], overwrite=True)
    with pytest.raises(InvalidInputError, match="of one type"):
        classifier.fit(iter([(colour(1), "a"), (colour(2), 2)]), overwrite=True)
    assert (any_store.count(), classifier.classes_.tolist()) == (10, ["shade 0", "shade 1"])


def test_overwrite_needs_a_store_that_can_be_cleared(encoder):
    """One of a user's own without scan, or one for another dimension, is refused untouched."""

    class Plain:
        """The nine members and nothing else."""

        def __init__(self):
            self._store = MemoryStore()

        def __getattr__(self, name):
            if name in ("scan", "save", "load", "location"):
                raise AttributeError(name)
            return getattr(self._store, name)

    plain = Plain()
    classifier = RetrievalClassifier(encoder, plain).fit(*pairs(range(60, 70)))
    with pytest.raises(UnsupportedOperationError, match="cannot list what it holds"):
        classifier.fit(*pairs(range(62, 66)), overwrite=True)
    with pytest.raises(UnsupportedOperationError, match="by their ids"):
        classifier.forget(label="shade 0")
    assert classifier.partial_fit([colour(900)], ["b"]).predict([colour(900)]).tolist() == ["b"]
    store = MemoryStore()
    with pytest.warns(UserWarning, match="only one class"):
        RetrievalClassifier(None, store).fit([[0.0, 1.0]], ["a"])
    with pytest.raises(DimensionMismatchError, match="dimension 2, and the new ones have 3"):
        RetrievalClassifier(encoder, store).fit(*pairs(range(62, 66)), overwrite=True)
    assert store.count() == 1


def test_resume_refuses_what_another_encoder_filled(encoder, any_store):
    """The fingerprint, the metric and the vectors' length are compared before anything is encoded."""
    RetrievalClassifier(encoder, any_store).fit(*pairs(range(60, 70)))
    other = Colours()
    other.fingerprint = {"encoder": "Colours", "dim": 3, "version": 2}
    with pytest.raises(FingerprintMismatchError, match="version: stored nothing, given 2"):
        RetrievalClassifier(other, any_store).fit(*pairs(range(60, 80)), resume=True)
    with pytest.raises(FingerprintMismatchError, match="normalize: stored False, given True"):
        RetrievalClassifier(other, any_store, normalize=True).partial_fit(*pairs(range(60, 80)))
    assert (other.encoded, any_store.count()) == (0, 10)


@pytest.mark.parametrize("flush_every", [None, 1, 8, 100])
def test_a_source_that_fails_leaves_what_came_before(encoder, tmp_path, flush_every):
    """What was encoded is in the folder; resume encodes the rest alone and ends as if nothing had been."""

    def broken():
        for number in range(300):
            if number == 200:
                raise RuntimeError("the camera was unplugged")
            yield colour(number), f"shade {number // 64}"

    store = FaissStore(tmp_path / "index")
    with pytest.raises(RuntimeError, match="unplugged"):
        RetrievalClassifier(encoder, store).fit(broken(), flush_every=flush_every)
    with FaissStore(tmp_path / "index", read_only=True) as seen:
        assert seen.count() == 200
    store.close()
    with FaissStore(tmp_path / "index") as store:
        classifier = RetrievalClassifier(encoder, store, k=5)
        classifier.fit(*pairs(range(300)), resume=True, flush_every=flush_every)
        assert counts(classifier.fit_report_) == (100, 200, 0)
        assert encoder.encoded == 300
        whole = RetrievalClassifier(encoder, "memory", k=5).fit(*pairs(range(300)))
        assert answers(classifier) == answers(whole)


def test_labels_of_another_type_are_refused_and_nothing_of_them_stored(encoder, any_store):
    """A str classifier takes no int labels, whichever way they come."""
    classifier = RetrievalClassifier(encoder, any_store).fit(*pairs(range(128)))
    for images, labels in (([colour(900)], [3]), (iter([(colour(900), 3)]), None), ([colour(1)], [True])):
        with pytest.raises(InvalidInputError, match="of one type"):
            classifier.partial_fit(images, labels)
    assert any_store.count() == 128
    assert classifier.classes_.tolist() == ["shade 0", "shade 1"]


def test_the_report_says_what_became_of_each_image(encoder):
    """New, there, relabelled, skipped; as text and as JSON values."""
    classifier = RetrievalClassifier(encoder, "memory").fit([colour(1), colour(900)], ["a", "b"])
    images = [colour(1), colour(900), colour(70), b"no picture"]
    classifier.partial_fit(images, ["a", "a", "b", "b"], on_error="skip")
    report = classifier.fit_report_
    assert (counts(report), len(report.skipped), report.images) == ((1, 1, 1), 1, 4)
    assert report.skipped == tuple(classifier.skipped_)
    assert report.to_dict()["skipped"][0]["index"] == 3
    assert set(report.to_dict()["parts"]) == {"decode", "encode", "store", "flush"}
    text = str(report)
    assert text.startswith("4 images in")
    assert "1 new, 1 already there, 1 relabelled, 1 skipped" in text
    assert report.skipped[0].reason in text
    assert classifier.fit_timing_ is report.timing


def test_progress_counts_every_image(encoder):
    """Known and skipped ones too; the total is the last number told."""
    told = []
    images, labels = pairs(range(200))
    classifier = RetrievalClassifier(encoder, "memory").fit(images[:70], labels[:70])
    classifier.partial_fit(
        [*images, b"no picture"], [*labels, "x"], on_error="skip", progress=lambda *args: told.append(args)
    )
    assert told[0] == (0, 201)
    assert told[-1] == (201, 201)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("value", [0, -1, 2.5, "often", True])
def test_flush_every_is_a_whole_number(encoder, value):
    with pytest.raises(InvalidInputError, match="flush_every must be a whole number, at least 1"):
        RetrievalClassifier(encoder, "memory").fit(*pairs(range(4)), flush_every=value)


def test_a_named_store_is_kept_while_its_arguments_are(encoder, tmp_path):
    """Fitting again goes into the folder that is open; the folder need not be closed first."""
    classifier = RetrievalClassifier(encoder, "faiss", store_options={"path": tmp_path / "index"})
    classifier.fit(*pairs(range(128)))
    store = classifier.store_
    with pytest.raises(InvalidInputError, match="already holds 128 vectors"):
        classifier.fit(*pairs(range(128)))
    assert classifier.fit(*pairs(range(140)), resume=True).store_ is store
    assert counts(classifier.fit_report_) == (12, 128, 0)
    classifier.fit(*pairs(range(100)), overwrite=True)
    assert classifier.store_ is store
    assert store.count() == 100
    store.close()


def test_the_error_about_labels_says_whose_are_which(encoder, any_store):
    """Labels of another type than the store's are told apart from them, also those of a folder."""
    classifier = RetrievalClassifier(encoder, any_store).fit([colour(1), colour(900)], [1, 2])
    with pytest.raises(InvalidInputError, match="those given are str, and those that the store holds int"):
        classifier.partial_fit([colour(5)], ["a"])
    with pytest.raises(InvalidInputError, match="those given are str, and those that the store holds int"):
        classifier.partial_fit([colour(5)], [3], classes=["a"])
    assert any_store.count() == 2


@pytest.mark.filterwarnings("ignore:.*given under several labels:clipretrieval.ClipRetrievalWarning")
def test_repeats_count_once_where_a_store_shows_its_writes_late(encoder):
    """What one call has given is known without asking the store, which may show it after a flush alone."""

    class Late(MemoryStore):
        def __init__(self):
            super().__init__()
            self.waiting = []

        def upsert(self, *record):
            self.waiting.append(record)

        def flush(self):
            while self.waiting:
                super().upsert(*self.waiting.pop(0))

    store = Late()
    classifier = RetrievalClassifier(encoder, store).partial_fit(*pairs(range(50)))
    images = [*range(50), *range(100, 200), *range(50), *range(100, 200), *range(50)]
    labels = ["a"] * 150 + ["shade 0"] * 50 + ["a"] * 50 + ["b"] * 50 + ["shade 0"] * 50
    classifier.partial_fit([colour(number) for number in images], labels, flush_every=400)
    assert counts(classifier.fit_report_) == (100, 100, 150)
    held = {number: store.get([classifier.kneighbors([colour(number)]).ids[0, 0]]) for number in images}
    assert {number: record.labels.tolist() for number, record in held.items()} == {
        **{number: ["shade 0"] for number in range(50)},
        **{number: ["a"] for number in range(100, 150)},
        **{number: ["b"] for number in range(150, 200)},
    }
    assert store.count() == 150
