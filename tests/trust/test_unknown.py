"""Images that are unlike all that is stored get the label for that, and few others do."""

from __future__ import annotations

import numpy as np
import pytest
from blobs import N_CLASSES, blobs, named

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import InvalidInputError, NotFittedError
from clipretrieval.explanation import explain_stream
from clipretrieval.heads.covariance import oas_shrinkage, shrink_covariance

FAR = np.float32(20)


def scores_by_hand(stored, vectors):
    """Return minus the squared distance to the tenth nearest."""
    far = ((vectors[:, None].astype(float) - stored[None].astype(float)) ** 2).sum(axis=2)
    return -np.sort(far, axis=1)[:, 9]


@pytest.mark.parametrize("arguments", [{"k": 1}, {"k": 12}, {"head": "discriminant"}, {"head": "ridge"}])
def test_the_score_is_the_distance_to_the_tenth_nearest(arguments, fitted_on, asked):
    classifier = RetrievalClassifier(store="memory", **arguments).fit(*fitted_on)
    found = classifier.score_samples(asked[0])
    np.testing.assert_allclose(found, scores_by_hand(fitted_on[0], asked[0]), rtol=1e-5)


def test_whitened_statistics_measure_it_without_neighbors(fitted_on, asked):
    """By the Mahalanobis distance to the nearest class, relative to that to their center."""
    classifier = RetrievalClassifier(store="memory", head="discriminant", transform="whiten")
    classifier.fit(*fitted_on)
    found = classifier.score_samples(np.concatenate([asked[0], asked[0][:50] + FAR]))
    assert found[:400].mean() > found[400:].max()
    vectors, codes = classifier.retriever_.index.transform.apply(fitted_on[0])[0].astype(float), fitted_on[1]
    means = np.array([vectors[np.array(codes) == code].mean(axis=0) for code in range(N_CLASSES)])
    within = vectors - means[codes]
    query = classifier.retriever_.index.transform.apply(asked[0][:1])[0][0].astype(float)
    covariance = within.T @ within / len(within)
    inverse = np.linalg.inv(shrink_covariance(covariance, oas_shrinkage(covariance, 160 - N_CLASSES)))
    squares = [float(d @ inverse @ d) for d in [query - means.mean(axis=0), *(query - means)]]
    assert found[0] == pytest.approx(-min(squares[1:]) / squares[0] ** 0.75, rel=1e-3)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_threshold_is_that_of_the_p_value(conditional, fitted_on, held_out, asked):
    """Of all held-out images, or of those of each class, at most a twentieth have less."""
    classifier = RetrievalClassifier(store="memory", k=3, unknown=-1).fit(*fitted_on)
    classifier.conformalize(*held_out, class_conditional=conditional)
    queries = np.concatenate([asked[0], asked[0][:50] + 2])
    scores, own = scores_by_hand(fitted_on[0], queries), scores_by_hand(fitted_on[0], held_out[0])
    groups = [np.array(held_out[1]) == code for code in range(N_CLASSES)]
    groups = groups if conditional else [np.ones(200, bool)]
    values = [[(1 + (own[g] <= score).sum()) / (1 + g.sum()) for g in groups] for score in scores]
    away = np.max(values, axis=1) <= 0.05
    found = classifier.predict(queries)
    assert ((found == -1) == away).all()
    assert 0 < away[:400].mean() < 0.08
    assert away[400:].any()
    plain = classifier.set_params(unknown=None).predict(queries)
    assert (found[~away] == plain[~away]).all()


@pytest.mark.parametrize("head", ["votes", "discriminant", "fused"])
def test_it_is_answered_everywhere(head, trusted, fitted_on, asked):
    """In predictions, explanations and reports; sets are empty, and probabilities what they were."""
    queries = np.concatenate([asked[0][:30], asked[0][:20] + FAR])
    trusted.set_params(head=head, k=5)
    shares, plain = trusted.predict_proba(queries), trusted.predict(queries)
    trusted.set_params(unknown="none of these, I think", max_turned_away=0.02)
    found = trusted.predict(queries)
    assert (found[30:] == "none of these, I think").all()
    assert (found[:30] == plain[:30]).mean() > 0.9
    np.testing.assert_array_equal(trusted.predict_proba(queries), shares)
    labels, sets = trusted.predict_set(queries, 0.9)
    assert labels.tolist() == found.tolist()
    assert not sets[30:].any()
    assert sets[:30].any()
    told = trusted.explain(queries)
    assert [each.answer for each in told] == found.tolist()
    assert told[-1].share == told[-1].margin == 0
    assert "none of these, I think" in str(told[-1])
    report = trusted.evaluate(queries, [*named(asked[1][:30]), *["none of these, I think"] * 20])
    assert report.y_pred.tolist() == found.tolist()
    assert report.accuracy == pytest.approx((30 * (found[:30] == named(asked[1][:30])).mean() + 20) / 50)
    assert all(mistake.index < 30 for mistake in report.mistakes)
    streamed = list(explain_stream(trusted, queries, coverage=0.9))
    in_words = [tuple(trusted.classes_[row].tolist()) for row in sets]
    assert [each.prediction_set for each in streamed] == in_words
    assert streamed[-1].to_dict()["set"] == []


def test_reports_tell_how_well_unknown_images_are_known(trusted, asked):
    """With the shares that are turned away, where any are."""
    far, labels = asked[0][:100] + FAR, named(asked[1])
    report = trusted.evaluate(asked[0], labels, unknown_images=far)
    assert report.unknown.auroc == 1
    assert report.unknown.n == 100
    assert report.unknown.known_turned_away is None
    trusted.set_params(unknown="?")
    report = trusted.evaluate(asked[0], labels, unknown_images=far)
    assert report.unknown.unknown_turned_away == 1
    assert report.unknown.known_turned_away == (trusted.predict(asked[0]) == "?").mean()
    assert report.to_dict()["unknown"] == vars(report.unknown)
    assert "AUROC for unknown images: 1.0000 (100 images)" in str(report)
    assert "turned away" in report.to_markdown()
    assert "turned away" in report.to_html()
    near = trusted.evaluate(asked[0], labels, unknown_images=blobs(100, 77)[0]).unknown
    assert 0.4 < near.auroc < 0.6


@pytest.mark.parametrize(
    ("labels", "unknown"), [([1, 2] * 80, -1), ([1.0, 2.0] * 80, 9.0), (["a", "b"] * 80, "a longer one")]
)
def test_labels_have_the_type_that_was_fitted(labels, unknown, fitted_on, held_out, asked):
    classifier = RetrievalClassifier(store="memory", unknown=unknown).fit(fitted_on[0], labels)
    classifier.conformalize(held_out[0], [labels[0], labels[1]] * 100)
    found = classifier.predict(np.concatenate([asked[0][:5], asked[0][:5] + FAR]))
    assert found[5:].tolist() == [unknown] * 5
    assert type(found[5:].tolist()[0]) is type(labels[0])
    assert set(found[:5].tolist()) <= {*labels, unknown}
    assert found.dtype.kind == np.array(labels).dtype.kind


def test_nobody_is_turned_away_without_a_promise(fitted, fitted_on, held_out, asked):
    """Or with a label that cannot stand for it."""
    fitted.set_params(unknown="?")
    with pytest.raises(NotFittedError, match=r"unknown='\?' .* call conformalize\(X, y\) .* unknown=None"):
        fitted.predict(asked[0])
    fitted.conformalize(held_out[0][:18], named(held_out[1][:18]))
    with pytest.raises(InvalidInputError, match=r"18 held-out images are too few to reject .* least 19"):
        fitted.predict(asked[0])
    for unknown, message in (
        ("cat", "is one of the classes"),
        (3, "unknown=3 is of the type int, and the classes are of the type str"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            fitted.set_params(unknown=unknown).predict(asked[0])
    for most in (0, 1, "x"):
        with pytest.raises(InvalidInputError, match=r"max_turned_away must (lie .* such as 0\.05|be a)"):
            fitted.set_params(max_turned_away=most).predict(asked[0])
    fresh = RetrievalClassifier(store="memory", unknown=2)
    with pytest.raises(InvalidInputError, match="unknown=2 is one of the classes"):
        fresh.fit(*fitted_on)
    labels = named(fitted_on[1])
    for given, message in (
        (3, "unknown=3 is of the type int, and the classes"),
        ([1], "unknown must be None"),
    ):
        for y in (labels, iter(labels)):
            with pytest.raises(InvalidInputError, match=message):
                fresh.set_params(unknown=given).fit(fitted_on[0], y)
