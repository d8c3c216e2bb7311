"""Sets of a classifier: as promised, whatever the head and the store, and in step with what is stored."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from blobs import N_CLASSES, blobs, named

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier, StagedEncoder
from clipretrieval.errors import InvalidInputError, NotFittedError
from clipretrieval.trust import ConformalReport, PredictionSets

HEADS = ["votes", "discriminant", "quadratic", "ridge", "fused"]


@pytest.mark.usefixtures("few_features")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
def test_every_head_keeps_the_promise(head, score, fitted_on, held_out, asked):
    """Labels are those of predict, columns those of classes_; 400 images tell 90 % from 84 %."""
    classifier = RetrievalClassifier(store="memory", head=head, k=9).fit(*fitted_on)
    classifier.conformalize(*held_out, score=score)
    found = classifier.predict_set(asked[0], 0.9)
    assert isinstance(found, PredictionSets)
    assert found.sets.dtype == bool
    assert found.labels.tolist() == classifier.predict(asked[0]).tolist()
    assert found.sets.shape == (400, N_CLASSES)
    assert 0.84 < found.sets[np.arange(400), asked[1]].mean() < 0.96
    assert 1 < found.sets.sum(axis=1).mean() < 2.5


@pytest.mark.parametrize("store", ["memory", "faiss", "chroma"])
@pytest.mark.parametrize(
    "arguments", [{}, {"normalize": True}, {"metric": "cosine"}, {"transform": "whiten"}]
)
def test_an_image_has_the_same_set_in_any_company(store, arguments, fitted_on, held_out, asked):
    """One by one, in reverse, and after pickling; also where coverage is promised of each class."""
    classifier = RetrievalClassifier(store=store, k=5, **arguments).fit(fitted_on[0], named(fitted_on[1]))
    classifier.conformalize(held_out[0], named(held_out[1]), score="aps", class_conditional=True)
    whole = classifier.predict_set(asked[0][:40], 0.8).sets
    single = [classifier.predict_set(asked[0][row : row + 1], 0.8).sets[0] for row in range(40)]
    assert (whole == single).all()
    assert (classifier.predict_set(asked[0][39::-1], 0.8).sets == whole[::-1]).all()
    if store == "memory":
        copied = pickle.loads(pickle.dumps(classifier))
        assert (copied.predict_set(asked[0][:40], 0.8).sets == whole).all()


@pytest.mark.parametrize("head", ["votes", "discriminant"])
def test_promises_follow_the_store(head, fitted_on, held_out, others, asked):
    """After additions, corrections and removals, sets are those of a classifier that was fitted so."""
    classifier = RetrievalClassifier(store="memory", head=head, k=5).fit(*fitted_on)
    classifier.calibrate(*others).conformalize(*held_out)
    before = classifier.predict_set(asked[0], 0.9).sets
    more = blobs(80, 9)
    gone = classifier.kneighbors(fitted_on[0][:20], 1).ids[:, 0].tolist()
    moved = classifier.kneighbors(fitted_on[0][20:30], 1).ids[:, 0].tolist()
    classifier.partial_fit(*more)
    classifier.relabel(moved, [3] * 10)
    classifier.forget(gone)
    labels = [3] * 10 + fitted_on[1][30:] + more[1]
    fresh = RetrievalClassifier(store="memory", head=head, k=5)
    fresh.fit(np.concatenate([fitted_on[0][20:], more[0]]), labels)
    fresh.calibrate(*others).conformalize(*held_out)
    found = classifier.predict_set(asked[0], 0.9).sets
    assert (found == fresh.predict_set(asked[0], 0.9).sets).all()
    assert (found != before).any()
    np.testing.assert_allclose(
        classifier.predict_proba(asked[0]), fresh.predict_proba(asked[0]), rtol=1e-6, atol=1e-9
    )


def test_an_image_that_is_stored_later_counts_no_more(fitted, held_out, asked):
    """So do those whose class is forgotten, until few are left."""
    labels = named(held_out[1])
    fitted.conformalize(held_out[0], labels)
    assert fitted.conformal_ == ConformalReport("lac", False, 200, 200 / 201)
    fitted.partial_fit(held_out[0][:50], labels[:50])
    assert fitted.conformal_.n == 150
    fitted.forget(label="cat")
    assert fitted.conformal_.n == 150 - labels[50:].count("cat")
    fitted.partial_fit(held_out[0][50:188], labels[50:188])
    assert fitted.conformal_.n == 12 + labels[:50].count("cat")  # these were forgotten
    fitted.partial_fit(held_out[0][:50], labels[:50])
    with pytest.raises(
        InvalidInputError, match=r"12 held-out images \(of 200: .* too few .* at least 19 are"
    ):
        fitted.predict_set(asked[0])
    assert fitted.predict_set(asked[0], 0.9).sets.shape == (400, len(fitted.classes_))


def test_a_head_that_is_set_later_answers(trusted, fitted_on, held_out, others, asked):
    """Nothing that was computed by another rule is used."""
    trusted.predict_set(asked[0], 0.9)
    fresh = RetrievalClassifier(store="memory", k=7).fit(fitted_on[0], named(fitted_on[1]))
    fresh.calibrate(others[0], named(others[1])).conformalize(held_out[0], named(held_out[1]))
    found = trusted.set_params(head="votes", k=7).predict_set(asked[0], 0.9)
    assert (found.sets == fresh.predict_set(asked[0], 0.9).sets).all()
    assert found.labels.tolist() == fresh.predict(asked[0]).tolist()


def test_class_conditional_coverage(fitted_on, held_out):
    """Each class is covered, the hardest one too, which a common threshold neglects."""
    noise = np.random.default_rng(5).normal(size=(2000, 6)).astype(np.float32)
    classifier = RetrievalClassifier(store="memory", head="discriminant").fit(*fitted_on)
    hard = blobs(2000, 11)
    hard[0][np.array(hard[1]) == 0] += 1.2 * noise[np.array(hard[1]) == 0]
    split = slice(1000), slice(1000, 2000)
    truth = np.array(hard[1][1000:])

    def covered(**arguments):
        classifier.conformalize(hard[0][split[0]], hard[1][:1000], **arguments)
        hit = classifier.predict_set(hard[0][split[1]], 0.9).sets[np.arange(1000), truth]
        return np.array([hit[truth == code].mean() for code in range(N_CLASSES)])

    assert covered().min() < 0.84
    assert (abs(covered(class_conditional=True) - 0.9) < 0.06).all()


@pytest.mark.parametrize("score", ["lac", "raps"])
def test_a_class_without_held_out_images_is_in_every_set(score, fitted, held_out, asked):
    """It is no reason to refuse, or to reject an image; the other classes are as before."""
    fitted.conformalize(held_out[0], named(held_out[1]), score=score, class_conditional=True)
    report, before = fitted.conformal_, fitted.predict_set(asked[0], 0.8).sets
    assert before.mean() < 0.9
    far = blobs(8, 50)[0] + np.float32(30)
    fitted.partial_fit(far, ["eel"] * 8)
    assert fitted.conformal_ == report
    found = fitted.set_params(unknown="?", max_turned_away=0.1).predict_set(asked[0], 0.8)
    away = found.labels == "?"
    assert 0 < away.mean() < 0.2
    assert (found.sets.any(axis=1) == ~away).all()
    eel = fitted.classes_.tolist().index("eel")
    assert found.sets[~away, eel].all()
    assert [each.answer for each in fitted.explain(asked[0][:9])] == found.labels[:9].tolist()
    others = np.delete(found.sets[~away], eel, axis=1)
    assert (others == before[~away]).mean() > 0.9
    with pytest.warns(ClipRetrievalWarning, match="no held-out images of the class 'eel': every prediction"):
        fitted.conformalize(held_out[0], named(held_out[1]), class_conditional=True)


def test_a_class_with_few_held_out_images_is_refused(fitted, held_out, asked):
    """Other than one without any: a guarantee was asked for."""
    far = blobs(8, 50)[0] + np.float32(30)
    fitted.partial_fit(far, ["eel"] * 8)
    images = np.concatenate([held_out[0], far[:2] + 1])
    fitted.conformalize(images, [*named(held_out[1]), "eel", "eel"], class_conditional=True)
    assert fitted.conformal_.most_coverage == pytest.approx(2 / 3)
    with pytest.raises(InvalidInputError, match="2 held-out images of the class 'eel' are too few to cover"):
        fitted.predict_set(asked[0], 0.8)
    with pytest.raises(InvalidInputError, match=r"of the class 'eel' are too few to reject at most 0\.1"):
        fitted.set_params(unknown="?", max_turned_away=0.1).predict(asked[0])


def test_nothing_is_promised_when_no_held_out_image_is_left(fitted, held_out, asked):
    """All are stored by now; the error says so, class by class too."""
    few = held_out[0][:12], named(held_out[1][:12])
    fitted.conformalize(*few, class_conditional=True).partial_fit(*few)
    assert fitted.conformal_ == ConformalReport("lac", True, 0, 0.0)
    with pytest.raises(InvalidInputError, match=r"0 held-out images \(of 12: others are stored by now"):
        fitted.predict_set(asked[0])


@pytest.mark.parametrize("head", ["discriminant", "fused"])
def test_a_copy_answers_the_same(head, trusted, asked):
    """Pickled, though what a head has learned cannot be."""
    trusted.set_params(head=head, unknown="?", k=5)
    whole = trusted.predict_set(asked[0], 0.9)
    copied = pickle.loads(pickle.dumps(trusted)).predict_set(asked[0], 0.9)
    assert copied.labels.tolist() == whole.labels.tolist()
    assert (copied.sets == whole.sets).all()


def test_a_skipped_image_has_an_empty_set(class_folder, tmp_path):
    """And the place of each other image stays."""
    classifier = RetrievalClassifier(StagedEncoder(stage="pixel"), store="memory").fit(class_folder / "train")
    classifier.conformalize(class_folder / "test")
    (tmp_path / "broken.png").write_bytes(b"no image")
    some = [*sorted((class_folder / "train" / "flower").iterdir())[:2]]
    with pytest.warns(ClipRetrievalWarning, match="1 of 3 images were skipped"):
        found = classifier.predict_set([some[0], tmp_path / "broken.png", some[1]], 0.9, on_error="skip")
    assert found.labels.tolist() == ["flower", None, "flower"]
    assert found.sets.any(axis=1).tolist() == [True, False, True]
    with pytest.warns(ClipRetrievalWarning, match="1 of 2 images were skipped"):
        scores = classifier.score_samples([tmp_path / "broken.png", some[1]], on_error="skip")
    assert np.isnan(scores).tolist() == [True, False]
    with pytest.raises(InvalidInputError, match=r"such as '.*train.flower.*'"):
        classifier.calibrate(some, ["flower"] * 2)


def test_a_fit_forgets(trusted, fitted_on, asked):
    trusted.fit(fitted_on[0], named(fitted_on[1]), overwrite=True)
    assert trusted.conformal_ is None
    assert trusted.calibration_ is None
    with pytest.raises(NotFittedError, match=r"not conformalized; call conformalize\(X, y\)"):
        trusted.predict_set(asked[0])


@pytest.mark.parametrize("method", ["conformalize", "calibrate"])
def test_images_that_break_the_promise_are_refused(method, trusted, fitted_on, held_out, others):
    """Those that are stored, that the other method was given, or of another class; nothing changes."""
    before, (vectors, codes) = trusted._trust, fitted_on
    call = getattr(trusted, method)
    with pytest.raises(InvalidInputError, match=r"160 of the images are stored .* such as that at place 0 "):
        call(vectors, named(codes))
    elsewhere, name = (others, "calibrate") if method == "conformalize" else (held_out, "conformalize")
    with pytest.raises(
        InvalidInputError, match=rf"were given to {name}, .*Split your held-out images in two"
    ):
        call(elsewhere[0], named(elsewhere[1]))
    new = blobs(30, 20)
    with pytest.raises(InvalidInputError, match="the classifier has no class 'eel'"):
        call(new[0], ["eel"] * 30)
    with pytest.raises(InvalidInputError, match="of the type int"):
        call(*new)
    with pytest.raises(InvalidInputError, match="labels are missing"):
        call(new[0])
    assert trusted._trust is before


@pytest.mark.parametrize("method", ["conformalize", "calibrate"])
def test_an_image_of_two_labels_is_said(method, fitted, held_out):
    """As fit says it; equal labels are no conflict, and the last label counts."""
    vectors, labels = held_out[0][:60], named(held_out[1][:60])
    getattr(fitted, method)(np.concatenate([vectors, vectors[:5]]), labels + labels[:5])
    other = "cat" if labels[0] != "cat" else "ape"
    with pytest.warns(
        ClipRetrievalWarning, match=rf"1 image was given to {method} under .* as '{other}'; the last label"
    ):
        getattr(fitted, method)(np.concatenate([vectors, vectors[:1]]), [*labels, other])
    part = fitted._trust.conformal or fitted._trust.calibrated
    row = np.flatnonzero((part.images.vectors == vectors[0]).all(axis=1))[0]
    assert part.images.labels[row] == other


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 1.5, "0.9", None, float("nan")])
def test_coverage_that_cannot_be(trusted, asked, coverage):
    with pytest.raises(InvalidInputError, match="coverage must"):
        trusted.predict_set(asked[0], coverage)


def test_too_few_images(fitted, asked):
    """The message tells how many it takes, of each class where each is promised."""
    few = blobs(12, 30)
    fitted.conformalize(few[0], named(few[1]))
    with pytest.raises(
        InvalidInputError, match=r"12 held-out images are too few to cover 0.95: .* least 19 are"
    ):
        fitted.predict_set(asked[0])
    fitted.conformalize(few[0], named(few[1]), class_conditional=True)
    with pytest.raises(InvalidInputError, match=r"of the class '.*' are too few .* at least 9 of each class"):
        fitted.predict_set(asked[0], 0.9)


def test_an_unfitted_classifier_says_so(held_out):
    for method in ("conformalize", "calibrate"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(RetrievalClassifier(), method)(*held_out)
    for method in ("predict_set", "score_samples"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(RetrievalClassifier(), method)(held_out[0])
