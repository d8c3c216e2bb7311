"""RetrievalClassifier and CascadeClassifier as scikit-learn estimators."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted

from clipretrieval import CascadeClassifier, RetrievalClassifier, StagedEncoder
from clipretrieval.errors import UnsupportedOperationError
from clipretrieval.heads import Discriminant, Fused, Ridge
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore

# Checks that fail, each with the reason why it must.
EXPECTED_FAILURES: dict[str, str] = {}


@pytest.mark.filterwarnings("ignore:there is only one class:clipretrieval.ClipRetrievalWarning")
@pytest.mark.filterwarnings("ignore:k=:clipretrieval.ClipRetrievalWarning")
@parametrize_with_checks(
    [
        RetrievalClassifier(),
        RetrievalClassifier(store="memory", k=3, weights="distance"),
        RetrievalClassifier(store="memory", head="discriminant"),
    ],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_scikit_learns_own_checks(estimator, check):
    """The estimator keeps every convention that scikit-learn checks."""
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    return train_test_split(*load_digits(return_X_y=True), random_state=0, stratify=load_digits().target)


@pytest.mark.parametrize("k", [1, 5])
def test_equals_scikit_learns_neighbours(digits, k):
    """On real scans the predictions are those of scikit-learn's brute force, ties aside."""
    X_train, X_test, y_train, y_test = digits
    ours = RetrievalClassifier(k=k).fit(X_train, y_train)
    theirs = KNeighborsClassifier(k, algorithm="brute").fit(X_train, y_train)
    np.testing.assert_allclose(
        ours.kneighbors(X_test).distances, theirs.kneighbors(X_test)[0] ** 2, rtol=1e-5, atol=1e-3
    )
    assert (ours.predict(X_test) == theirs.predict(X_test)).mean() > 0.99
    assert ours.score(X_test, y_test) == accuracy_score(y_test, ours.predict(X_test)) > 0.97


def test_works_in_grid_search_and_cross_validation(digits):
    """Parameters are searched, folds are scored, and a pipeline passes scaled vectors on."""
    X, _, y, _ = digits
    grid = GridSearchCV(RetrievalClassifier(), {"k": [1, 3, 40], "weights": ["uniform", "distance"]}, cv=3)
    grid.fit(X[:600], y[:600])
    assert grid.best_params_["k"] in (1, 3)
    assert grid.best_score_ > 0.93
    scores = cross_val_score(make_pipeline(StandardScaler(), RetrievalClassifier(store="memory")), X, y, cv=3)
    assert scores.min() > 0.9


def test_heads_are_searched_by_name_and_as_objects(digits):
    """A grid over heads fits a clone for each, and the best one is what answers."""
    X, _, y, _ = digits
    heads = ["votes", "discriminant", Discriminant(0.9999), Ridge(features=64)]
    grid = GridSearchCV(RetrievalClassifier(store="memory"), {"head": heads}, cv=3, error_score="raise")
    grid.fit(X[:300], y[:300])
    scores = grid.cv_results_["mean_test_score"]
    for head, score in zip(heads, scores, strict=True):
        classifier = RetrievalClassifier(store="memory", head=head)
        assert cross_val_score(classifier, X[:300], y[:300], cv=3).mean() == pytest.approx(score)
    assert len(set(scores)) > 2
    assert grid.best_estimator_.head == grid.best_params_["head"]


def test_a_head_is_a_parameter_like_any_other():
    """clone keeps it with its arguments and without what it has learned, and set_params takes another."""
    classifier = RetrievalClassifier(store="memory", head=Discriminant(0.5), priors=[0.25, 0.75])
    classifier.fit([[0.0], [1.0], [8.0], [9.0]], ["a", "a", "b", "b"])
    copied = clone(classifier)
    assert copied.get_params()["head"] == Discriminant(0.5)
    assert copied.get_params()["priors"] == [0.25, 0.75]
    assert not hasattr(copied, "store_")
    assert copied.set_params(head="quadratic").head == "quadratic"
    assert classifier.head == Discriminant(0.5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda fitted: pickle.loads(pickle.dumps(fitted))])
@pytest.mark.parametrize(
    "head",
    [
        *("discriminant", "quadratic", Discriminant("validated")),
        *(Ridge(features=64), Fused(ridge=Ridge(features=64))),
    ],
)
def test_a_copy_with_a_learned_head_goes_its_own_way(digits, copied, head):
    """A fitted classifier answers the same after pickling or a deep copy, and neither changes the other."""
    X, X_test, y, _ = digits
    fitted = RetrievalClassifier(store="memory", head=head, transform=None).fit(X[:200], y[:200])
    before = fitted.predict_proba(X_test[:20])
    other = copied(fitted)
    np.testing.assert_allclose(other.predict_proba(X_test[:20]), before, rtol=1e-6, atol=1e-9)
    other.partial_fit(X[200:300], y[200:300])
    assert (other.class_statistics().count, fitted.class_statistics().count) == (300, 200)
    np.testing.assert_allclose(fitted.predict_proba(X_test[:20]), before, rtol=1e-6, atol=1e-9)
    fresh = RetrievalClassifier(store="memory", head=head, transform=None).fit(X[:300], y[:300])
    expected = fresh.predict_proba(X_test[:20])
    np.testing.assert_allclose(other.predict_proba(X_test[:20]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [MemoryStore, FaissStore, ChromaStore])
def test_each_fold_has_an_empty_store_of_the_same_kind(kind):
    """A clone's store in memory is empty, and the one that was passed keeps what was fitted into it."""
    X, y = np.arange(40.0)[:, None], [place // 20 for place in range(40)]
    options = {"index": "SQfp16", "recall": 0.9} if kind is FaissStore else {}
    classifier = RetrievalClassifier(store=kind(metric="cosine", **options), metric="cosine")
    X = np.hstack([X, X[::-1]])
    classifier.fit(X, y)
    copied = clone(classifier)
    assert repr(copied.store) == repr(kind(metric="cosine", **options))
    assert copied.fit(X[::2], y[::2]).store_.count() == 20
    assert cross_val_score(classifier, X, y, cv=4, error_score="raise").min() >= 0.8
    assert classifier.store.count() == 40
    classifier.store.close()


@pytest.mark.parametrize("kind", [FaissStore, ChromaStore])
def test_a_store_in_a_folder_is_not_cloned(kind, tmp_path):
    """Every fold would write into the one folder: the error says to pass the store by name."""
    with kind(tmp_path / "data") as store, pytest.raises(UnsupportedOperationError, match="store='faiss'"):
        clone(RetrievalClassifier(store=store))


def test_folds_in_other_processes_make_their_stores_by_name(digits):
    """With `n_jobs`, each worker opens Chroma itself, and the scores are those of one process."""
    X, _, y, _ = digits
    classifier = RetrievalClassifier(store="chroma")
    scores = [cross_val_score(classifier, X[:200], y[:200], cv=4, n_jobs=jobs) for jobs in (None, 2)]
    assert scores[0].tolist() == scores[1].tolist()


def test_pictures_work_in_cross_validation(class_folder, tiny_model):
    """Paths are cut into folds like any array, and every clone shares the encoder's weights."""
    paths = np.array(sorted(map(str, (class_folder / "train").rglob("*.*g"))))
    labels = np.array([path.split("/")[-2] for path in paths])
    classifier = RetrievalClassifier(StagedEncoder(tiny_model, stage="mid"))
    copied = clone(classifier)
    assert copied.encoder is not classifier.encoder
    assert copied.encoder._tower is classifier.encoder._tower
    assert cross_val_score(classifier, paths, labels, cv=3).mean() > 0.7


@pytest.mark.filterwarnings("ignore:this cascade was never calibrated:clipretrieval.ClipRetrievalWarning")
def test_cascades_work_in_cross_validation_and_grid_search(class_folder, tiny_model):
    """Each fold has stores of its own; an uncalibrated cascade scores as its last stage."""
    paths = np.array(sorted(map(str, (class_folder / "train").rglob("*.*g"))))
    labels = np.array([path.split("/")[-2] for path in paths])
    encoder = StagedEncoder(tiny_model, stage="mid")
    cascade = CascadeClassifier(encoder, ("layer1", "mid"), head="votes", store="memory")
    found = cross_val_score(cascade, paths, labels, cv=3, error_score="raise")
    assert (
        found.tolist()
        == cross_val_score(RetrievalClassifier(encoder, "memory"), paths, labels, cv=3).tolist()
    )
    grid = GridSearchCV(cascade, {"head": ["votes", "discriminant"]}, cv=2, error_score="raise")
    assert grid.fit(paths, labels).best_estimator_.predict(paths[:1]).tolist() == ["flower"]
    assert not hasattr(cascade, "exits_")


def test_a_cascade_is_a_classifier_and_no_transformer(tiny_model):
    """scikit-learn's own questions: its kind, its arguments, and that it is not fitted yet."""
    cascade = CascadeClassifier(StagedEncoder(tiny_model), ("layer1", "late"), transform="whiten")
    assert is_classifier(cascade)
    assert not hasattr(cascade, "transform")
    assert clone(cascade).get_params()["transform"] == "whiten"
    with pytest.raises(NotFittedError):
        check_is_fitted(cascade)
