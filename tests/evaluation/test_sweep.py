"""Many settings from one search, and the guard against measuring on what was tuned on."""

from __future__ import annotations

import json
import warnings
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits

from clipretrieval import (
    ClipRetrievalWarning,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
    StagedEncoder,
    SweepResult,
)
from clipretrieval.images import scan_folder
from clipretrieval.stores import MemoryStore

METRICS = ("l2", "cosine", "ip")


def rank(distances):
    """Weights that depend on all neighbours at once: a shorter prefix gives other ones."""
    return np.argsort(-distances, axis=1) + 1.0 + distances.shape[1] % 2


def closeness(distances):
    return 1 / (1 + np.abs(np.where(np.isfinite(distances), distances, 0)))


@pytest.fixture(scope="module")
def digits():
    """Real scans: 897 to fit on and 900 others."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order].astype(np.float32), y[order]
    return X[:897], y[:897], X[897:], y[897:]


@pytest.fixture
def fitted(digits):
    return RetrievalClassifier(store="memory").fit(*digits[:2])


class Brightness:
    """A user's own encoder: the mean of each channel."""

    dim = 3
    fingerprint = {"encoder": "Brightness"}

    def encode(self, images):
        return np.stack([np.asarray(image).mean((0, 1)) for image in images]).astype(np.float32)


@pytest.fixture
def pictures():
    """Eighty pictures of one colour each, light ones and dark ones, with their labels."""
    rng = np.random.default_rng(1)
    shades = [(*rng.integers(0, 110, 3),) for _ in range(40)] + [
        (*rng.integers(140, 250, 3),) for _ in range(40)
    ]
    images = [Image.new("RGB", (8, 8), tuple(map(int, shade))) for shade in shades]
    return images, ["dark"] * 40 + ["light"] * 40


@pytest.fixture
def by_colour(pictures):
    images, labels = pictures
    return RetrievalClassifier(Brightness(), "memory").fit(images[::4], labels[::4])


def predicted_accuracies(classifier, result, X, y):
    """Ask the classifier itself, one setting after the other, on what was tuned on."""
    places = np.setdiff1d(np.arange(len(X)), result.held_out)
    return [
        float(np.mean(classifier.set_params(**params).predict(X[places]) == np.asarray(y)[places]))
        for params in result.params
    ]


@st.composite
def problems(draw):
    """Small whole numbers, so that distances and votes tie often."""
    n, m, dim = draw(st.integers(2, 14)), draw(st.integers(1, 10)), draw(st.integers(1, 3))
    train, test = (draw(hnp.arrays(np.float32, (rows, dim), elements=st.integers(1, 4))) for rows in (n, m))
    names = draw(st.sampled_from([["b", "a", "ü"], [3, -1, 10**12], [True, False]]))
    labels = [draw(st.lists(st.sampled_from(names), min_size=rows, max_size=rows)) for rows in (n, m)]
    return train, labels[0], test, labels[1]


@pytest.mark.filterwarnings("ignore:there is only one class:clipretrieval.ClipRetrievalWarning")
@pytest.mark.filterwarnings("ignore:k=:clipretrieval.ClipRetrievalWarning")
@pytest.mark.filterwarnings("ignore:.* given under several labels:clipretrieval.ClipRetrievalWarning")
@pytest.mark.parametrize("store", ["memory", "faiss"])
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=40)
@given(problem=problems(), ks=st.lists(st.integers(1, 16), min_size=1, max_size=3))
def test_each_row_is_what_predict_gives(store, metric, problem, ks):
    """Whatever the ties, labels and padding, each accuracy is that of predict with the setting."""
    train, labels, test, truth = problem
    classifier = RetrievalClassifier(store=store, metric=metric).fit(train, labels)
    weights = ["uniform", "softmax", rank, closeness, *([] if metric == "ip" else ["distance"])]
    result = classifier.sweep(
        test, truth, k=ks, weights=weights, temperature=[0.5, 5], validation=1.0, allow_known=True
    )
    assert [row["accuracy"] for row in result.rows] == predicted_accuracies(classifier, result, test, truth)
    assert len(result.rows) == len(set(ks)) * (len(weights) + 1)


@pytest.mark.parametrize("store", ["memory", "faiss"])
@pytest.mark.parametrize("metric", METRICS)
def test_each_row_is_what_evaluate_gives_on_real_scans(digits, store, metric):
    """Over several batches, on the part that was drawn, with intervals and counts."""
    X_train, y_train, X, y = digits
    X, y = np.concatenate([X, X + 1]), np.concatenate([y, y])
    classifier = RetrievalClassifier(store=store, metric=metric).fit(X_train / 16, y_train)
    weights = ["uniform", "softmax", closeness, *([] if metric == "ip" else ["distance"])]
    result = classifier.sweep(X / 16, y, k=[1, 4, 30], weights=weights, temperature=[0.02, 0.5])
    tuned = np.setdiff1d(np.arange(len(X)), result.held_out)
    for row, params in zip(result.rows, result.params, strict=True):
        classifier.set_params(**params)
        report = classifier.evaluate(X[tuned] / 16, y[tuned], allow_tuned=True)
        assert (row["accuracy"], row["n"]) == (report.accuracy, report.n_test)
        assert (row["low"], row["high"]) == report.accuracy_interval
    assert len({row["accuracy"] for row in result.rows}) > 3


def test_rows_are_in_order_and_each_setting_comes_once(fitted, digits):
    """k, then weights, then temperature, which is softmax's alone; repeats are dropped."""
    X, y = digits[2][:40], digits[3][:40]
    result = fitted.sweep(
        X, y, k=[5, 1, np.int64(5)], weights=["softmax", "uniform", "softmax"], temperature=[1, 0.5, 1.0]
    )
    assert [(row["k"], row["weights"], row["temperature"]) for row in result.rows] == [
        (k, *rest) for k, rest in product([5, 1], [("softmax", 1.0), ("softmax", 0.5), ("uniform", None)])
    ]
    assert all(row["n"] == 40 - len(result.held_out) for row in result.rows)
    single = fitted.sweep(X, y, k=3, weights=closeness, temperature=0.1)
    assert [(row["k"], row["weights"]) for row in single.rows] == [(3, "closeness")]
    default = fitted.sweep(X, y)
    assert [(row["k"], row["weights"], row["temperature"]) for row in default.rows] == [
        (k, *rest)
        for k, rest in product([1, 5, 20, 50], [("uniform", None), ("distance", None), ("softmax", 0.07)])
    ]


def test_everything_is_searched_once(fitted, digits):
    """However many settings: each validation image is one query, and the others are none."""
    result = fitted.sweep(*digits[2:], k=range(1, 20))
    assert result.timing.images["search"] == result.rows[0]["n"] == 900 - len(result.held_out)


def test_the_best_is_the_most_accurate_then_the_smallest_k_then_the_first():
    """Ties between accuracies go to the smaller k, wherever it stands, then to what stands first."""

    def result(*cells):
        rows = [
            {"head": "votes", "k": k, "weights": w, "temperature": None, "accuracy": a}
            | {"n": 10, "low": 0.0, "high": 1.0}
            for k, w, a in cells
        ]
        params = [{"k": row["k"], "weights": row["weights"]} for row in rows]
        return SweepResult(rows=rows, held_out=np.arange(0), params=params)

    assert result((5, "uniform", 0.9), (1, "uniform", 0.8)).best["k"] == 5
    assert result((5, "uniform", 0.9), (1, "uniform", 0.9)).best["k"] == 1
    found = result((5, "uniform", 0.9), (1, "softmax", 0.9), (1, "uniform", 0.9))
    assert found.best == found.rows[1]
    assert found.best_params == {"k": 1, "weights": "softmax"}
    assert [line[0] for line in found.table().splitlines()] == [" ", " ", "*", " "]


def test_the_best_params_fit_the_classifier(fitted, digits):
    """set_params takes them as they are, callables included, and evaluate then gives the best accuracy."""
    for weights in ("softmax", "uniform", closeness, partial(closeness)):
        result = (
            clone(fitted).fit(*digits[:2]).sweep(*digits[2:], k=[3, 9], weights=weights, validation="all")
        )
        fitted.set_params(**result.best_params)
        assert fitted.weights is weights
        assert ("temperature" in result.best_params) == (weights == "softmax")
        assert fitted.score(*digits[2:]) == result.best["accuracy"] == max(r["accuracy"] for r in result.rows)


def test_the_classifiers_own_settings_do_not_matter_and_stay(fitted, digits):
    """A sweep changes no parameter."""
    fitted.set_params(k=7, weights="softmax", temperature=0.3)
    before = fitted.get_params()
    fitted.sweep(*digits[2:], k=2, weights="uniform")
    assert fitted.get_params() == before


def test_more_neighbours_than_the_store_holds():
    """One warning; every k beyond the store's count gives what all neighbours give."""
    classifier = RetrievalClassifier(store="memory").fit([[0.0], [1.0], [9.0]], ["a", "a", "b"])
    with pytest.warns(ClipRetrievalWarning, match="k=50 is more than the 3 vectors") as caught:
        result = classifier.sweep([[8.0], [0.5]], ["b", "a"], k=[1, 3, 20, 50], validation="all")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    uniform = {row["k"]: row["accuracy"] for row in result.rows if row["weights"] == "uniform"}
    assert uniform == {1: 1.0, 3: 0.5, 20: 0.5, 50: 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.sweep([[8.0], [0.5]], ["b", "a"], k=[1, 3], validation="all")


def test_a_callable_sees_the_neighbours_of_its_k(fitted, digits):
    """Never more columns than it is asked about, nor those of padding."""
    widths = set()

    def watch(distances):
        widths.add(distances.shape[1])
        assert np.isfinite(distances).all()
        return np.ones_like(distances)

    fitted.sweep(*digits[2:], k=[1, 5, 20], weights=watch)
    assert widths == {1, 5, 20}


def test_classes_that_were_never_fitted_count_as_wrong():
    """An unknown label cannot be answered; one that the store has gained meanwhile can."""
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store).fit([[0.0], [1.0]], ["a", "b"])
    X, y = [[0.1], [1.1], [5.1]], ["a", "b", "c"]
    assert classifier.sweep(X, y, k=1, validation="all").best["accuracy"] == 2 / 3
    store.upsert(["new"], np.array([[5.0]], np.float32), ["c"])
    assert classifier.sweep(X, y, k=1, validation="all").best["accuracy"] == 1
    assert classifier.classes_.tolist() == ["a", "b", "c"]


def test_the_part_depends_on_content_alone(by_colour, pictures):
    """Not on the order, nor on what else is there, nor on the kind of source; on the seed it does."""
    images, labels = (part[1::2] for part in pictures)
    pairs = list(zip(images, labels, strict=True))

    def held_out(source, y=None, seed=0):
        found = clone(by_colour).fit(pictures[0][::4], pictures[1][::4])
        return found.sweep(source, y, k=1, weights="uniform", seed=seed).held_out.tolist()

    places = held_out(images, labels)
    assert held_out(pairs) == held_out(iter(pairs)) == held_out(iter(images), iter(labels)) == places
    assert sorted(len(pairs) - 1 - place for place in held_out(pairs[::-1])) == places
    assert held_out(pairs[:20]) == [place for place in places if place < 20]
    assert held_out(pairs + pairs) == places + [place + len(pairs) for place in places]
    assert held_out(pairs, seed=1) != places


def test_the_part_is_about_the_fraction_of_each_class(fitted, digits):
    """Within four standard deviations of a binomial draw, overall and in each class."""
    X, y = digits[2:]
    for fraction in (None, 0.2, np.float32(0.75)):
        classifier = clone(fitted).fit(*digits[:2])
        held_out = classifier.sweep(X, y, k=1, weights="uniform", validation=fraction).held_out
        share = 0.5 if fraction is None else float(fraction)
        tuned = np.setdiff1d(np.arange(len(X)), held_out)
        for n, drawn in [(len(X), len(tuned)), *zip(np.bincount(y), np.bincount(y[tuned]), strict=True)]:
            assert abs(drawn - share * n) < 4 * np.sqrt(share * (1 - share) * n)
    for everything in ("all", 1, 1.0):
        result = clone(fitted).fit(*digits[:2]).sweep(X, y, k=1, weights="uniform", validation=everything)
        assert (len(result.held_out), result.best["n"]) == (0, len(X))


def test_evaluate_refuses_what_was_tuned_on(fitted, digits):
    """The validation part is refused until the next fit, by score as well; the rest is not."""
    X, y = digits[2:]
    result = fitted.sweep(X, y, k=[1, 3])
    used = len(X) - len(result.held_out)
    fitted.set_params(**result.best_params)
    with pytest.raises(
        InvalidInputError, match=f"{used} of the first {len(X)} images.*held_out.*allow_tuned"
    ):
        fitted.evaluate(X, y)
    with pytest.raises(InvalidInputError, match="tuned on"):
        fitted.score(X, y)
    one = np.setdiff1d(np.arange(len(X)), result.held_out)[:1]
    mixed = np.concatenate([result.held_out, one])
    with pytest.raises(InvalidInputError, match=f"1 of the first {len(mixed)} images"):
        fitted.evaluate(X[mixed], y[mixed])
    assert fitted.evaluate(X[result.held_out], y[result.held_out]).n_test == len(result.held_out)
    assert fitted.evaluate(X, y, allow_tuned=True).n_test == len(X)
    assert fitted.predict(X).shape == y.shape
    assert fitted.fit(*digits[:2]).evaluate(X, y).n_test == len(X)


def test_the_memory_grows_with_each_sweep(fitted, digits):
    """What an earlier sweep used is not held out by a later one, so its held_out can be evaluated on."""
    X, y = digits[2:]
    first = fitted.sweep(X, y, k=1, weights="uniform", seed=0)
    second = fitted.sweep(X, y, k=1, weights="uniform", seed=1)
    assert set(second.held_out) < set(first.held_out)
    assert 0.15 < len(second.held_out) / len(X) < 0.35
    assert fitted.evaluate(X[second.held_out], y[second.held_out]).n_test == len(second.held_out)
    with pytest.raises(InvalidInputError, match="tuned on"):
        fitted.evaluate(X[first.held_out], y[first.held_out])


def test_failures_leave_the_memory_as_it_was(fitted, digits):
    """A sweep that fails has tuned nothing; a fit that fails has forgotten nothing."""
    X, y = digits[2:]
    with pytest.raises(InvalidInputError):
        fitted.sweep(X, [str(label) for label in y])
    assert fitted.evaluate(X, y).n_test == len(X)
    fitted.sweep(X, y)
    with pytest.raises(InvalidInputError):
        fitted.fit(*digits[:1])
    with pytest.raises(InvalidInputError, match="tuned on"):
        fitted.evaluate(X, y)


@pytest.mark.parametrize("metric", METRICS)
def test_images_that_the_store_holds_are_refused(digits, metric):
    """They would vote for themselves; the message counts those of the validation part."""
    X_train, y_train, X, y = digits
    classifier = RetrievalClassifier(store="memory", metric=metric).fit(X_train, y_train)
    mixed, truth = np.concatenate([X[:50], X_train[:7]]), np.concatenate([y[:50], y_train[:7]])
    weights = ["uniform", "softmax"]
    # By inner product a longer vector may be nearer than the image itself, which then has no vote.
    itself = RetrievalClassifier(store="memory").fit(X_train, y_train).kneighbors(X_train[:7], 1).ids
    votes = (classifier.kneighbors(X_train[:7], 3).ids == itself).any(axis=1).sum()
    assert votes == 7 if metric != "ip" else 0 < votes < 7
    with pytest.raises(InvalidInputError, match=f"^{votes} of the first 57 .*allow_known"):
        classifier.sweep(mixed, truth, k=3, weights=weights, validation="all")
    assert classifier.evaluate(mixed, truth).n_test == 57
    result = classifier.sweep(mixed, truth, weights=weights, validation="all", allow_known=True)
    assert [row["accuracy"] for row in result.rows] == predicted_accuracies(classifier, result, mixed, truth)


def test_repeats_of_old_stores_are_known_by_their_suffix(by_colour, pictures):
    """A picture of which a copy with a suffix alone is left in the store is still known."""
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    classifier = RetrievalClassifier(Brightness(), "memory").fit([red, *pictures[0]], ["red", *pictures[1]])
    first = classifier.kneighbors(red, 1).ids[0]
    classifier.store_.upsert([f"{first[0]}-2"], classifier.store_.get(first).vectors, ["red"])
    classifier.store_.delete([first[0]])
    with pytest.raises(InvalidInputError, match="1 of the first 1 validation images"):
        classifier.sweep([red], ["red"], k=1, validation="all")


def test_held_out_images_may_be_known(by_colour, pictures):
    """Only what is tuned on has to be new."""
    images, labels = pictures
    probe = clone(by_colour).fit(images[::4], labels[::4])
    held_out = probe.sweep(images, labels, k=1, weights="uniform", allow_known=True).held_out
    assert len(held_out) > 5
    classifier = clone(by_colour).fit([images[i] for i in held_out], [labels[i] for i in held_out])
    result = classifier.sweep(images, labels, k=1, weights="uniform")
    assert result.held_out.tolist() == held_out.tolist()


def test_folders_and_pictures_that_cannot_be_decoded(class_folder, tiny_model, tmp_path):
    """A folder brings its labels; skipped pictures are listed and neither tuned on nor held out."""
    classifier = RetrievalClassifier(StagedEncoder(tiny_model, stage="stem"), "memory").fit(
        class_folder / "train"
    )
    folder = scan_folder(class_folder / "test")
    result = classifier.sweep(class_folder / "test", k=[1, 3])
    rest = result.held_out
    assert 0 < len(rest) < 10
    report = classifier.evaluate([folder.paths[i] for i in rest], [folder.labels[i] for i in rest])
    assert report.n_test == len(rest)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    paths, labels = [broken, *folder.paths], ["temple", *folder.labels]
    told = []
    again = classifier.sweep(
        paths, labels, k=1, weights="uniform", on_error="skip", progress=lambda *counts: told.append(counts)
    )
    assert [skipped.index for skipped in again.skipped] == [0]
    assert again.held_out.tolist() == [place + 1 for place in rest]
    assert told[0] == (0, 11)
    assert told[-1] == (11, 11)
    assert again.timing.images["encode"] == 10
    assert again.to_dict()["n_skipped"] == 1


def test_the_result_as_text_and_as_json(fitted, digits):
    """One line a setting, aligned, the best one marked; JSON values that survive a round trip."""
    result = fitted.sweep(*digits[2:], k=[1, 5], weights=["uniform", "softmax", closeness])
    lines = result.table().splitlines()
    assert lines[0].split() == ["k", "weights", "temperature", "accuracy", "95", "%", "interval"]
    assert len(lines) == 1 + len(result.rows) == 7
    assert len({line.index("%") for line in lines[1:]}) == 1
    for line, row in zip(lines[1:], result.rows, strict=True):
        shown = line.removeprefix("*").split()
        temperature = "-" if row["temperature"] is None else "0.07"
        assert shown == [
            *(str(row["k"]), row["weights"], temperature, f"{row['accuracy']:.2%}"),
            *(f"{row['low']:.2%}", "to", f"{row['high']:.2%}"),
        ]
        assert line.startswith("*") == (row == result.best)
    assert str(result).startswith(result.table())
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["rows"] == result.rows
    assert content["best"] == result.best
    assert content["held_out"] == result.held_out.tolist()
    with pytest.raises(AttributeError):
        result.rows = []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": []}, "k holds nothing"),
        ({"k": 0}, "at least 1"),
        ({"k": [1, 2.5]}, "whole number"),
        ({"k": None}, "whole number"),
        ({"k": "5"}, "whole number"),
        ({"weights": ()}, "weights holds nothing"),
        ({"weights": ["uniform", "loud"]}, "'loud'"),
        ({"weights": None}, "unknown weights None"),
        ({"temperature": []}, "temperature holds nothing"),
        ({"temperature": [0.1, 0]}, "above 0"),
        ({"temperature": ["warm"]}, "above 0"),
        ({"temperature": np.nan}, "above 0"),
        ({"validation": 0}, "above 0 and at most 1"),
        ({"validation": 1.5}, "above 0 and at most 1"),
        ({"validation": True}, "above 0 and at most 1"),
        ({"validation": "most"}, "'all'"),
        ({"validation": 1e-9}, "none of the 900 images"),
        ({"seed": 0.5}, "seed"),
        ({"on_error": "ignore"}, "on_error"),
        ({"weights": lambda distances: distances[:, :1]}, "shape"),
    ],
)
def test_wrong_arguments_are_refused(fitted, digits, arguments, message):
    """By name, with what is expected; nothing counts as tuned on."""
    with pytest.raises(InvalidInputError, match=message):
        fitted.sweep(*digits[2:], **arguments)
    assert fitted.evaluate(*digits[2:]).n_test == 900


def test_inverse_distance_is_refused_for_inner_products(digits):
    """As by the classifier itself: the default weights hold one that does not suit the metric."""
    classifier = RetrievalClassifier(store="memory", metric="ip").fit(*digits[:2])
    with pytest.raises(InvalidInputError, match=r"weights='distance'.*metric='ip'"):
        classifier.sweep(*digits[2:])


def test_wrong_images_and_labels_are_refused(fitted, by_colour, pictures, digits):
    """No fit, no labels, other labels, no images."""
    X, y = digits[2:]
    with pytest.raises(NotFittedError):
        RetrievalClassifier().sweep(X, y)
    with pytest.raises(InvalidInputError, match="labels are missing"):
        fitted.sweep(X)
    with pytest.raises(InvalidInputError, match="no label"):
        by_colour.sweep(pictures[0][1::4], k=1, validation="all")
    with pytest.raises(InvalidInputError, match="fitted on int"):
        fitted.sweep(X, [str(label) for label in y])
    with pytest.raises(InvalidInputError, match="900 vectors and 899 labels"):
        fitted.sweep(X, y[1:])
    with pytest.raises(InvalidInputError, match="no images"):
        by_colour.sweep([], [], k=1)
