"""RetrievalClassifier on pictures and on vectors."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from clipretrieval import (
    ClipRetrievalWarning,
    DimensionMismatchError,
    FingerprintMismatchError,
    ImageDecodeError,
    InvalidInputError,
    Neighbors,
    NotFittedError,
    RetrievalClassifier,
    StagedEncoder,
    StoreError,
    UnknownStoreError,
)
from clipretrieval.images import scan_folder
from clipretrieval.stores import FaissStore, MemoryStore

STORES = ("memory", "faiss")
POINTS = np.array([[0, 0], [0, 1], [4, 0], [4, 1], [9, 9]], dtype=np.float32)


@pytest.fixture
def encoder(tiny_model):
    return StagedEncoder(tiny_model, stage="mid", precision="fp32")


@pytest.fixture
def picture():
    """Make a picture of one colour."""
    return lambda *colour: Image.new("RGB", (32, 32), colour)


class Brightness:
    """A user's own encoder: the mean of each channel."""

    dim = 3
    fingerprint = {"encoder": "Brightness"}

    def encode(self, images):
        return np.stack([np.asarray(image).mean((0, 1)) for image in images]).astype(np.float32)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_pictures_from_a_folder_are_told_apart(class_folder, encoder, store, k):
    """Crops of two photographs find their own, from folders as from lists, with every k."""
    encoder = StagedEncoder(encoder.model, stage="stem")
    classifier = RetrievalClassifier(encoder, store, k=k).fit(class_folder / "train")
    assert classifier.classes_.tolist() == ["flower", "temple"]
    assert classifier.n_features_in_ == encoder.dim
    folder = scan_folder(class_folder / "test")
    predictions = classifier.predict(folder.paths)
    assert predictions.shape == (10,)
    assert classifier.score(class_folder / "test") == np.mean(predictions == np.array(folder.labels)) >= 0.8


@pytest.mark.parametrize("store", STORES)
def test_answers_equal_a_plain_computation(class_folder, encoder, store):
    """Neighbours, distances and votes equal those of a float64 loop over the same vectors."""
    train, test = scan_folder(class_folder / "train"), scan_folder(class_folder / "test")
    classifier = RetrievalClassifier(encoder, store, k=5).fit(train.paths, train.labels)
    stored = encoder.encode(train.paths).astype(np.float64)
    asked = encoder.encode(test.paths).astype(np.float64)
    distances = ((asked[:, None] - stored[None]) ** 2).sum(-1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :5]
    near = classifier.kneighbors(test.paths)
    np.testing.assert_allclose(near.distances, np.take_along_axis(distances, order, 1), rtol=1e-6)
    np.testing.assert_array_equal(near.labels, np.array(train.labels, dtype=object)[order])
    shares = (near.labels == "temple").mean(axis=1)
    np.testing.assert_allclose(classifier.predict_proba(test.paths), np.stack([1 - shares, shares], 1))
    expected = np.where(shares > 0.5, "temple", "flower")
    np.testing.assert_array_equal(classifier.predict(test.paths), expected)


def test_every_kind_of_source_gives_the_same_vectors(class_folder, encoder):
    """Paths, opened pictures, arrays, a generator of pairs, and the folder itself fit alike."""
    folder = scan_folder(class_folder / "train")
    pictures = [Image.open(path).convert("RGB") for path in folder.paths]
    sources = {
        "paths": (folder.paths, folder.labels),
        "pictures": (pictures, folder.labels),
        "arrays": ([np.asarray(p) for p in pictures], list(folder.labels)),
        "one array": (np.stack([np.asarray(p) for p in pictures]), np.array(folder.labels)),
        "pairs": (zip(pictures, folder.labels, strict=True), None),
        "folder": (class_folder / "train", None),
    }
    test = sorted((class_folder / "test").rglob("*.*g"))
    found = {}
    for name, (images, labels) in sources.items():
        classifier = RetrievalClassifier(encoder, "memory", k=3).fit(images, labels)
        near = classifier.kneighbors(test)
        found[name] = (near.distances.tolist(), near.labels.tolist())
    assert all(answer == found["paths"] for answer in found.values())


def test_ids_are_content_hashes(encoder, picture):
    """A picture's id depends on its content alone, and repeats within one fit are stored once."""
    red, blue = picture(200, 0, 0), picture(0, 0, 200)
    classifier = RetrievalClassifier(encoder, "memory").fit([red, blue, red], [0, 1, 0])
    assert classifier.store_.count() == 2
    near = classifier.kneighbors([red], 2)
    np.testing.assert_allclose(near.distances[0, 0], 0, atol=1e-9)
    again = RetrievalClassifier(encoder, "memory").fit([blue, red], [1, 0]).kneighbors([red], 2)
    assert again.ids.tolist() == near.ids.tolist()


def test_source_paths_are_kept_beside_the_vectors(class_folder, encoder):
    """What was fitted from a file can be found again by its neighbour's id."""
    classifier = RetrievalClassifier(encoder).fit(class_folder / "train")
    path = class_folder / "train" / "temple" / "00.jpg"
    nearest = classifier.kneighbors(path).ids[0, 0]
    assert classifier.store_.get([nearest]).metadata == [{"source": str(path)}]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([3, 3, -7, -7, 100], np.integer),
        (["b", "b", "a", "a", "ü"], str),
        ([True, True, False, False, True], np.bool_),
        ([1.0, 1.0, 2.0, 2.0, 5.0], np.floating),
        (np.array([1, 1, 2, 2, 3], dtype=np.uint8), np.integer),
    ],
)
@pytest.mark.parametrize("store", STORES)
def test_labels_keep_their_type(labels, kind, store):
    """What comes out of predict is of the type that went into fit, sorted in classes_."""
    classifier = RetrievalClassifier(store=store).fit(POINTS, labels)
    predicted = classifier.predict(POINTS)
    assert predicted.tolist() == list(labels)
    assert isinstance(predicted[0], kind)
    assert classifier.classes_.tolist() == sorted(set(np.asarray(labels).tolist()))


def test_ties_go_to_the_nearest_member():
    """With k=2 and one vote each, the nearer neighbour's class wins though the other sorts first."""
    classifier = RetrievalClassifier(k=2).fit(POINTS[:3], ["z", "y", "a"])
    assert classifier.predict([[0.0, 0.4], [0.0, 0.6]]).tolist() == ["z", "y"]
    assert classifier.predict([[0.0, 0.5]]).tolist() == ["y"]
    assert classifier.predict_proba([[0.0, 0.4]]).tolist() == [[0, 0.5, 0.5]]


def test_weights_change_the_vote():
    """Two far neighbours outvote one near one when all count alike, but not when distance counts."""
    points = np.array([[0.0], [3.0], [3.2]], dtype=np.float32)
    answers = {
        weights: RetrievalClassifier(k=3, weights=weights).fit(points, [0, 1, 1]).predict([[0.5]])[0]
        for weights in ("uniform", "distance", "softmax")
    }
    assert answers == {"uniform": 1, "distance": 0, "softmax": 0}


def test_a_users_own_encoder_and_store_serve(picture):
    """Anything that follows the two protocols works, with nothing to inherit."""
    classifier = RetrievalClassifier(Brightness(), MemoryStore("cosine"), metric="cosine")
    classifier.fit([picture(250, 10, 10), picture(10, 250, 10)], ["red", "green"])
    assert classifier.predict([picture(100, 0, 0), picture(30, 90, 0)]).tolist() == ["red", "green"]


def test_skipped_pictures_are_listed(tmp_path, encoder, picture):
    """With on_error="skip" a broken file is passed over and named; without, it is an error."""
    picture(9, 9, 9).save(tmp_path / "good.png")
    picture(99, 9, 9).save(tmp_path / "other.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG torn")
    paths, labels = [tmp_path / f"{n}.png" for n in ("good", "broken", "other")], ["a", "b", "c"]
    with pytest.raises(ImageDecodeError, match=r"broken\.png"):
        RetrievalClassifier(encoder).fit(paths, labels)
    classifier = RetrievalClassifier(encoder).fit(paths, labels, on_error="skip")
    assert [skipped.source for skipped in classifier.skipped_] == [str(tmp_path / "broken.png")]
    assert classifier.classes_.tolist() == ["a", "c"]
    with pytest.warns(ClipRetrievalWarning, match="2 of the 2 images are stored in the classifier") as caught:
        report = classifier.evaluate(paths, ["a", "a", "c"], on_error="skip")
    assert caught[0].filename == __file__
    assert (report.n_test, report.accuracy, len(report.skipped)) == (2, 1.0, 1)


def test_one_class_is_allowed_with_a_warning():
    """A classifier that knows one class says so and answers it."""
    with pytest.warns(ClipRetrievalWarning, match="only one class") as caught:
        classifier = RetrievalClassifier().fit(POINTS, ["x"] * 5)
    assert caught[0].filename == __file__
    assert classifier.predict(POINTS[:1]).tolist() == ["x"]


@pytest.mark.parametrize("store", STORES)
def test_k_beyond_the_store_uses_what_is_there(store):
    """More neighbours than vectors: all of them vote, with a warning; kneighbors pads."""
    classifier = RetrievalClassifier(store=store, k=50).fit(POINTS, [0, 0, 1, 1, 1])
    with pytest.warns(ClipRetrievalWarning, match="k=50 is more than the 5 vectors"):
        assert classifier.predict(POINTS[:1]).tolist() == [1]
    with pytest.warns(ClipRetrievalWarning, match="k=7"):
        near = classifier.kneighbors(POINTS[:2], 7)
    assert near.ids.shape == (2, 7)
    assert near.ids[:, 5:].tolist() == [["", ""]] * 2
    assert np.isinf(near.distances[:, 5:]).all()


def test_a_store_that_grows_is_seen(encoder, picture):
    """A class that another writer adds to the store is answered, and appears in classes_."""
    store = MemoryStore()
    classifier = RetrievalClassifier(encoder, store).fit([picture(250, 0, 0), picture(0, 250, 0)], ["r", "g"])
    blue = picture(0, 0, 250)
    store.upsert(["new"], encoder.encode([blue]), ["b"])
    assert classifier.predict([blue]).tolist() == ["b"]
    assert classifier.classes_.tolist() == ["b", "g", "r"]


def test_a_growing_store_never_moves_answers(picture):
    """A class that turns up late in a long question leaves the answers before it as they are."""
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store).fit(POINTS, ["m", "m", "z", "z", "z"])
    store.upsert(["n"], np.array([[50.0, 50.0]], np.float32), ["a longer label"])
    asked = np.array([[0, 0]] * 5000 + [[50, 50]], np.float32)
    shares = classifier.predict_proba(asked)
    assert classifier.classes_.tolist() == ["a longer label", "m", "z"]
    assert shares[[0, -1]].tolist() == [[0, 1, 0], [1, 0, 0]]
    again = RetrievalClassifier(store=MemoryStore()).fit(POINTS, ["m", "m", "z", "z", "z"])
    again.store_.upsert(["n"], np.array([[50.0, 50.0]], np.float32), ["a longer label"])
    assert again.predict(asked)[[0, -1]].tolist() == ["m", "a longer label"]


def test_threads_on_one_classifier_agree(picture):
    """Many threads asking one classifier, whose store has grown, all get the serial answers."""
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store).fit(POINTS, ["m", "m", "z", "z", "z"])
    store.upsert(["n"], np.array([[50.0, 50.0]], np.float32), ["a"])
    asked = np.array([[0, 0], [50, 50], [9, 9]], np.float32)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: classifier.predict(asked).tolist(), range(200)))
    assert answers == [["m", "a", "z"]] * 200


def test_a_failed_refit_leaves_the_fitted_classifier_alone():
    """After a fit that is refused, the one before it still answers."""
    classifier = RetrievalClassifier().fit(POINTS, [0, 0, 1, 1, 1])
    for X, y, options in (
        (np.zeros((3, 7)), [0.5, 0.1, 2.2], {}),
        (np.zeros((3, 7)), [0, 1, 1], {"store": "oracle"}),
    ):
        with pytest.raises((InvalidInputError, UnknownStoreError)):
            classifier.set_params(**options).fit(X, y)
        classifier.set_params(store="faiss")
        assert classifier.n_features_in_ == 2
        assert classifier.predict(POINTS).tolist() == [0, 0, 1, 1, 1]


def test_more_pictures_than_one_chunk_are_all_kept(picture):
    """A fit of thousands writes every vector, and the manifest knows the classes of all chunks."""
    images = [picture(n % 256, n // 256, 7) for n in range(2500)]
    labels = [f"class {n // 500}" for n in range(2500)]
    classifier = RetrievalClassifier(Brightness(), "memory").fit(iter(images), iter(labels))
    assert classifier.store_.count() == 2500
    assert classifier.store_.read_manifest()["classes"] == [f"class {n}" for n in range(5)]
    assert classifier.predict(images[::100]).tolist() == labels[::100]


def test_a_fit_that_is_cut_short_leaves_its_identity(picture, tmp_path):
    """What was stored before the source failed is named: the manifest goes first."""
    store = FaissStore(tmp_path / "index")

    def source():
        for n in range(3000):
            if n == 2200:
                raise OSError("the camera was unplugged")
            yield picture(n % 256, n // 256, 7), n % 2

    with pytest.raises(OSError, match="unplugged"):
        RetrievalClassifier(Brightness(), store).fit(source())
    assert store.count() == 2200
    assert store.read_manifest()["encoder"] == Brightness.fingerprint


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: np.zeros((n, 2)), "dim is 3"),
        (lambda n: np.zeros((n + 1, 3)), "shape"),
        (lambda n: np.zeros(3), "shape"),
        (lambda n: np.full((n, 3), np.nan), "NaN.*number 0"),
        (lambda n: np.full((n, 3), 1e300), "infinite"),
        (lambda n: np.zeros((n, 3), complex), "complex"),
        (lambda n: np.full((n, 3), "a"), "expected real numbers"),
        (lambda n: torch.zeros(n, 3).to_sparse(), "sparse tensor"),
        (lambda n: [[1], [1, 2]], "differ in length"),
    ],
)
def test_an_encoder_that_returns_nonsense_is_named(picture, answer, message):
    """Wrong shapes, NaN and other types from a user's encoder are refused before anything is stored."""

    class Nonsense(Brightness):
        def encode(self, images):
            return answer(len(images))

    store = MemoryStore()
    with pytest.raises(InvalidInputError, match=message) as caught:
        RetrievalClassifier(Nonsense(), store).fit([picture(1, 1, 1), picture(2, 2, 2)], [0, 1])
    assert "Nonsense" in str(caught.value)
    assert store.count() == 0


def test_an_encoder_may_use_its_buffer_again(picture):
    """Vectors are copied before the encoder is asked for the next ones."""

    class Thrifty(Brightness):
        buffer = np.zeros((64, 3), np.float32)

        def encode(self, images):
            self.buffer[: len(images)] = super().encode(images)
            return self.buffer[: len(images)]

    images = [picture(n, 255 - n, 0) for n in range(200)]
    classifier = RetrievalClassifier(Thrifty()).fit(images, list(range(200)))
    assert classifier.predict(images).tolist() == list(range(200))


@pytest.mark.parametrize("fingerprint", ["v1", {"a": object()}, {"a": float("nan")}, None])
def test_a_fingerprint_has_to_be_json(picture, fingerprint):
    """An encoder whose fingerprint cannot be kept is refused, and told why."""
    encoder = Brightness()
    encoder.fingerprint = fingerprint
    with pytest.raises(InvalidInputError, match="fingerprint must be a mapping of JSON values"):
        RetrievalClassifier(encoder).fit([picture(1, 1, 1), picture(2, 2, 2)], [0, 1])


@pytest.mark.parametrize("y", [{"x", "y"}, {"x": 1, "y": 2}, "ab", b"ab", np.array(3)])
def test_labels_have_to_be_a_sequence(picture, y):
    """Sets, mappings, strings and single values are not taken for one label an image."""
    with pytest.raises(InvalidInputError, match="labels"):
        RetrievalClassifier(Brightness()).fit([picture(1, 1, 1), picture(2, 2, 2)], y)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_softmax_weighs_by_the_stores_metric(metric):
    """The shares follow exp(similarity / T) with the similarity of that metric."""
    points = np.array([[1, 0], [0.8, 0.6]], np.float32)
    classifier = RetrievalClassifier(k=2, weights="softmax", temperature=0.5, metric=metric)
    shares = classifier.fit(points, [0, 1]).predict_proba([[1.0, 0.0]])[0]
    expected = np.exp(np.array([1.0, 0.8]) / 0.5)
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=1e-6)


def test_a_store_that_answers_nonsense_is_named():
    """Distances that are NaN or out of order, missing rows and empty answers are the store's fault."""

    class Faulty(MemoryStore):
        change = staticmethod(lambda near: near)

        def search(self, vectors, k):
            return self.change(super().search(vectors, k))

    store = Faulty()
    classifier = RetrievalClassifier(store=store, k=3).fit(POINTS, [0, 0, 1, 1, 1])
    for change in (
        lambda near: Neighbors(near.ids, near.distances * np.nan, near.labels),
        lambda near: Neighbors(near.ids, near.distances[:, ::-1], near.labels),
        lambda near: Neighbors(near.ids, near.distances + np.inf, near.labels),
        lambda near: Neighbors(near.ids[:1], near.distances[:1], near.labels[:1]),
    ):
        store.change = change
        with pytest.raises(StoreError, match=r"Faulty\.search"):
            classifier.predict(POINTS + 0.25)


def test_fitting_again_by_name_starts_afresh():
    """A store given by name is made anew at every fit; an instance that is full is refused unchanged."""
    classifier = RetrievalClassifier().fit(POINTS, [0, 0, 1, 1, 1])
    assert classifier.fit(POINTS[:2], ["a", "b"]).store_.count() == 2
    store = FaissStore()
    classifier = RetrievalClassifier(store=store).fit(POINTS, [0, 0, 1, 1, 1])
    with pytest.raises(InvalidInputError, match="already holds 5 vectors"):
        classifier.fit(POINTS[:2], [7, 8])
    assert classifier.predict(POINTS).tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(FingerprintMismatchError, match="dim: stored 2, given 1"):
        RetrievalClassifier(store=store).fit(POINTS[:, :1], [0, 0, 1, 1, 1])


def test_a_store_that_another_encoder_filled_is_refused(tiny_model, other_model, picture):
    """Another stage, other weights or another size name what differs, at fit and at predict."""
    images = [picture(250, 0, 0), picture(0, 250, 0)]
    store = MemoryStore()
    fitted = RetrievalClassifier(StagedEncoder(tiny_model, stage="mid"), store).fit(images, [0, 1])
    for encoder, named in (
        (StagedEncoder(tiny_model, stage="layer2"), "stage: stored 'mid', given 'layer2'"),
        (StagedEncoder(other_model, stage="mid"), "weights: stored 'sha256:"),
        (StagedEncoder(tiny_model, stage="mid", image_size=96), "image_size: stored 64, given 96"),
    ):
        with pytest.raises(FingerprintMismatchError, match=named):
            RetrievalClassifier(encoder, store).fit(images, [0, 1])
        fitted.set_params(encoder=encoder)
        with pytest.raises(FingerprintMismatchError, match=named):
            fitted.predict(images)


def nothing_stored(**options):
    """A classifier over a store that has to stay empty."""
    store = MemoryStore()
    return RetrievalClassifier(store=store, **options), store


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (POINTS, [0, 1], "5 vectors and 2 labels"),
        (POINTS, None, "target y is None"),
        (np.array([[0, np.nan]]), [0], "NaN"),
        (np.array([[0, np.inf]]), [0], "infinity"),
        (np.array([[0, 1e39]]), [0], "infinity|too large"),
        (np.empty((0, 2)), [], "0 sample"),
        (POINTS, [0, 1, 0.5, 1, 2], "float and int"),
        (POINTS[0], [0], "2D"),
        (POINTS, [0, "a", 1, "b", 2], "int and str"),
        (POINTS, [0, True, 1, 1, 2], "bool and int"),
        (POINTS, [0.0, 1.0, 0.5, 1.0, 2.0], "continuous"),
        (POINTS, [0.0, 1.0, float("inf"), 1.0, 2.0], "infinity"),
        (POINTS, ["a\0", "a", "b", "b", "b"], "NUL"),
        (POINTS, ["\udcff", "a", "b", "b", "b"], "Unicode"),
    ],
)
def test_bad_vectors_are_refused_and_nothing_is_stored(X, y, message):
    """Wrong lengths, NaN, infinities, nothing at all and quantities are errors before anything is kept."""
    classifier, store = nothing_stored()
    with pytest.raises(InvalidInputError, match=message):
        classifier.fit(X, y)
    assert (store.count(), store.read_manifest()) == (0, {})


def test_bad_pictures_are_refused_and_nothing_is_stored(encoder, picture, tmp_path):
    """Missing, surplus and mixed labels, no pictures and an empty folder leave the store as it was."""
    images = [picture(1, 2, 3), picture(3, 2, 1)]
    for X, y, message in (
        (images, [0], "2.*1|1.*2"),
        (images, [0, 1, 2], "2.*3|3.*2"),
        (images, [0, "a"], "int and str"),
        (images, [0, None], "no label"),
        (images, None, "no label"),
        (images, [[0], [1]], "list"),
        ([], [], "no images"),
        (tmp_path, None, "empty|no image"),
        (iter([]), iter([]), "no images"),
    ):
        classifier, store = nothing_stored(encoder=encoder)
        with pytest.raises(InvalidInputError, match=message):
            classifier.fit(X, y)
        assert (store.count(), store.read_manifest()) == (0, {})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, InvalidInputError, "at least 1"),
        ({"k": 2.0}, InvalidInputError, "whole number"),
        ({"k": True}, InvalidInputError, "whole number"),
        ({"weights": "loud"}, InvalidInputError, "'uniform', 'distance', 'softmax'"),
        ({"temperature": 0}, InvalidInputError, "above 0"),
        ({"temperature": -1.0}, InvalidInputError, "above 0"),
        ({"temperature": float("inf")}, InvalidInputError, "above 0"),
        ({"temperature": "warm"}, InvalidInputError, "above 0"),
        ({"k": 2**70}, InvalidInputError, "at most"),
        ({"weights": np.ones(3)}, InvalidInputError, "'uniform'"),
        ({"weights": "distance", "metric": "ip"}, InvalidInputError, "softmax"),
        ({"store_options": [1]}, InvalidInputError, "mapping"),
        ({"store_options": {"metric": "cosine"}}, InvalidInputError, "classifier alone"),
        ({"encoder": StagedEncoder}, InvalidInputError, "class"),
        ({"store": MemoryStore}, InvalidInputError, "instance"),
        ({"metric": "l1"}, InvalidInputError, "'l2', 'cosine', 'ip'"),
        ({"store": "oracle"}, UnknownStoreError, "faiss.*memory"),
        ({"store": "faiss", "store_options": {"colour": 1}}, InvalidInputError, "colour"),
        ({"store": 7}, InvalidInputError, "not a vector store"),
        ({"store": MemoryStore("cosine")}, InvalidInputError, "metric='cosine'"),
        ({"store": MemoryStore(), "store_options": {"a": 1}}, InvalidInputError, "by name"),
        ({"encoder": "RN50"}, InvalidInputError, "not an encoder.*StagedEncoder"),
    ],
)
def test_constructor_arguments_are_checked_at_fit(options, error, message):
    """A wrong argument is refused with what would be right."""
    with pytest.raises(error, match=message):
        RetrievalClassifier(**options).fit(POINTS, [0, 0, 1, 1, 1])


def test_answers_need_a_fit_and_matching_input():
    """Asking too early, for nothing, or in another dimension is an error that says what to do."""
    for ask in ("predict", "predict_proba", "kneighbors", "score"):
        with pytest.raises(NotFittedError, match="call fit"):
            getattr(RetrievalClassifier(), ask)(*[POINTS, [0] * 5][: 2 if ask == "score" else 1])
    classifier = RetrievalClassifier().fit(POINTS, [0, 0, 1, 1, 1])
    with pytest.raises(DimensionMismatchError, match=r"3 features.*2 features"):
        classifier.predict(np.ones((1, 3)))
    with pytest.raises(InvalidInputError, match="at least 1"):
        classifier.kneighbors(POINTS, 0)
    with pytest.raises(InvalidInputError, match="5 vectors and 2 labels"):
        classifier.evaluate(POINTS, [0, 1])
    with pytest.raises(InvalidInputError, match="same type"):
        classifier.evaluate(POINTS, list("abcde"))


def test_an_emptied_store_says_so():
    """When everything was deleted, predict asks for a new fit rather than answering noise."""
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store).fit(POINTS, [0, 0, 1, 1, 1])
    store.delete(classifier.kneighbors(POINTS).ids[:, 0].tolist())
    with pytest.raises(NotFittedError, match="no vectors any more"):
        classifier.predict(POINTS)


def test_progress_is_told(encoder, picture):
    """The callback hears how many of how many, up to all of them."""
    heard: list[tuple[int, int | None]] = []
    images = [picture(n, 0, 0) for n in range(5)]
    classifier = RetrievalClassifier(encoder).fit(
        images, [0, 0, 1, 1, 1], progress=lambda done, total: heard.append((done, total))
    )
    assert heard[-1] == (5, 5)
    heard.clear()
    others = [picture(n, 0, 9) for n in range(4)]
    classifier.evaluate(iter(others), [0, 0, 1, 1], progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (4, None)


def test_predictions_are_quiet(encoder, picture):
    """An ordinary fit and predict warn of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = [picture(250, 0, 0), picture(0, 250, 0)]
        RetrievalClassifier(encoder).fit(images, [0, 1]).predict(images)
