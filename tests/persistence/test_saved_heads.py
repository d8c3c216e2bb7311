"""Saved classifiers keep their head and priors, and a crafted file cannot name any other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from saved_files import rewrite

from clipretrieval import RetrievalClassifier, StoreCorruptedError, UnsupportedOperationError
from clipretrieval.heads import Discriminant, Fused, Moments, Quadratic, Ridge

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 90)
POINTS = RNG.normal(size=(90, 6)) + LABELS[:, None]
QUERIES = RNG.normal(size=(20, 6)) + RNG.integers(0, 3, (20, 1))
NESTED = Fused(k=5, discriminant=Discriminant("validated"), ridge=Ridge(features=64, penalty=0.1, seed=3))
FUSED = {
    "name": "fused",
    "k": 5,
    "discriminant": {"name": "discriminant", "shrinkage": "validated"},
    "ridge": {"name": "ridge", "features": 64, "penalty": 0.1, "seed": 3},
}


@pytest.mark.parametrize(
    ("head", "written"),
    [
        ("votes", "votes"),
        ("discriminant", "discriminant"),
        (Discriminant(np.float64(0.25)), {"name": "discriminant", "shrinkage": 0.25}),
        (Quadratic(pooling=0.5), {"name": "quadratic", "pooling": 0.5, "shrinkage": "oas"}),
        (Ridge(features=32), {"name": "ridge", "features": 32, "penalty": None, "seed": 0}),
        (NESTED, FUSED),
    ],
)
@pytest.mark.parametrize("priors", ["empirical", [0.5, 0.25, 0.25]])
def test_a_saved_head_answers_the_same(tmp_path, head, written, priors):
    """classifier.json has the head's name or its arguments, and what is loaded gives equal probabilities."""
    fitted = RetrievalClassifier(store="memory", k=3, head=head, priors=priors).fit(POINTS, LABELS)
    fitted.save(tmp_path / "saved")
    params = json.loads((tmp_path / "saved" / "classifier.json").read_text())["params"]
    assert (params["head"], params["priors"]) == (written, priors)
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    assert (loaded.head, loaded.priors) == (head, priors)
    np.testing.assert_allclose(loaded.predict_proba(QUERIES), fitted.predict_proba(QUERIES), rtol=1e-9)


@pytest.mark.parametrize("head", ["votes", "discriminant", "quadratic", "ridge", "fused"])
def test_every_name_of_a_head_is_kept(tmp_path, head):
    """What was saved by a name is loaded by it."""
    RetrievalClassifier(store="memory", head=head).fit(POINTS, LABELS).save(tmp_path / "saved")
    assert RetrievalClassifier.load(tmp_path / "saved").head == head


def test_statistics_come_with_the_saved_store(tmp_path):
    """What was kept with the store answers at once, without a warning, and follows what is added."""
    fitted = RetrievalClassifier(store="memory", head="discriminant").fit(POINTS[:60], LABELS[:60])
    fitted.save(tmp_path / "saved")
    loaded = RetrievalClassifier.load(tmp_path / "saved").partial_fit(POINTS[60:], LABELS[60:])
    found, expected = loaded.class_statistics(), np.float32(POINTS).astype(np.float64)
    assert found.counts.tolist() == np.bincount(LABELS).tolist()
    np.testing.assert_allclose(found.second_moment, expected.T @ expected, rtol=1e-9, atol=1e-9)


class Own:
    """A head of a user's own: all classes are equally likely."""

    k = 0
    moments = (Moments(),)

    def learn(self, contents):
        return self


def test_a_head_of_ones_own_is_not_saved(tmp_path):
    """The error says to set another head; one that is derived from ours is one's own too."""

    class Derived(Discriminant):
        """More than its arguments say."""

    for head in (Own(), Derived()):
        fitted = RetrievalClassifier(store="memory", head=head).fit(POINTS, LABELS)
        with pytest.raises(UnsupportedOperationError, match=rf"{type(head).__name__} of your own.*set head"):
            fitted.save(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    fitted.set_params(head="discriminant").save(tmp_path / "saved")
    assert RetrievalClassifier.load(tmp_path / "saved").head == "discriminant"


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        ("nearest", "params.head must be one of 'votes', 'discriminant'"),
        (None, "params.head must be a mapping"),
        (5, "params.head must be a mapping"),
        ([], "params.head must be a mapping"),
        ({}, "params.head.name must be one of 'discriminant'"),
        ({"name": "votes"}, "params.head.name must be one of"),
        ({"name": ["ridge"]}, "params.head.name must be one of"),
        ({"name": "discriminant"}, "lacks, 'shrinkage'"),
        ({"name": "discriminant", "shrinkage": 0.1, "more": 1}, "should not have, or lacks, 'more'"),
        ({"name": "discriminant", "shrinkage": 2}, "shrinkage must lie in .0, 1."),
        ({"name": "discriminant", "shrinkage": True}, "shrinkage must be"),
        ({"name": "discriminant", "shrinkage": {"name": "discriminant"}}, "shrinkage must be"),
        ({"name": "quadratic", "pooling": "some", "shrinkage": 0}, "pooling must be 'auto'"),
        (
            {"name": "ridge", "features": 10**9, "penalty": None, "seed": 0},
            "features must be .* at most 32768",
        ),
        ({"name": "ridge", "features": 64, "penalty": -1, "seed": 0}, "penalty must be"),
        (FUSED | {"k": 0}, "k must be"),
        (FUSED | {"discriminant": "discriminant"}, "discriminant must be a Discriminant"),
        (FUSED | {"discriminant": FUSED}, "params.head.discriminant.name must be one of 'discriminant'"),
        (FUSED | {"ridge": {"name": "ridge"}}, "params.head.ridge should not have, or lacks"),
    ],
)
def test_a_crafted_head_is_refused(tmp_path, head, complaint):
    """Whatever is no head of the library's with arguments that it takes is damage, checksum or not."""
    RetrievalClassifier(store="memory").fit(POINTS, LABELS).save(tmp_path)
    file = tmp_path / "classifier.json"
    rewrite(file, params=json.loads(file.read_text())["params"] | {"head": head})
    with pytest.raises(StoreCorruptedError, match=complaint):
        RetrievalClassifier.load(tmp_path)


@pytest.mark.parametrize(
    "priors", [None, 3, "even", [], [-1, 2], ["a"], [[1]], [0, 0], [10**400], {"a": 1}, [True, None]]
)
def test_crafted_priors_are_refused(tmp_path, priors):
    """Priors are a known name or numbers that are not negative."""
    RetrievalClassifier(store="memory").fit(POINTS, LABELS).save(tmp_path)
    file = tmp_path / "classifier.json"
    rewrite(file, params=json.loads(file.read_text())["params"] | {"priors": priors})
    with pytest.raises(StoreCorruptedError, match="priors must be"):
        RetrievalClassifier.load(tmp_path)
