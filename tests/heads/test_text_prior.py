"""Texts beside a head: as CLIP's own classifier has them, weighed by stored images alone."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.preprocessing import normalize

from clipretrieval import (
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    UnsupportedOperationError,
    ZeroShotClassifier,
)
from clipretrieval.heads.base import Queries
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.ridge import Ridge
from clipretrieval.heads.text_prior import TextPrior

NAMES = ["flower", "garden_wall", "temple"]
TEN = ["boat", "cat", "dog", "fish", "house", "key", "lamp", "mug", "star", "tree"]
SMALL = {
    "votes": "votes",
    "discriminant": "discriminant",
    "ridge": Ridge(features=64),
    "fused": Fused(k=3, ridge=Ridge(features=64)),
}
"""Heads that learn quickly."""


@pytest.fixture(scope="module")
def encoder(tiny_model):
    """An encoder whose vectors lie in one space with texts."""
    return StagedEncoder(tiny_model, stage="final", precision="fp32")


class Given:
    """An encoder that returns the vectors that it is given as images, with the texts of another."""

    def __init__(self, encoder, vectors):
        self.dim, self.text, self.stage = encoder.dim, encoder.text, "final"
        self.fingerprint = {"encoder": "given"}
        self._vectors = vectors

    def encode(self, images):
        """Look the vectors up by the first pixels."""
        return np.stack([self._vectors[int(np.asarray(image)[0, 0, 0])] for image in images])


@pytest.fixture(scope="module")
def texts(encoder):
    """The text vectors of the three classes."""
    zero_shot = ZeroShotClassifier(encoder, NAMES).fit()
    return zero_shot._text_vectors()


@pytest.fixture(scope="module")
def near_texts(encoder, texts):
    """60 vectors that lie near their class's text, and the images that stand for them."""
    rng = np.random.default_rng(0)
    codes = np.arange(60) % 3
    spread = np.linalg.norm(texts - texts.mean(axis=0), axis=1).mean() / np.sqrt(texts.shape[1])
    vectors = (texts[codes] + spread * rng.normal(size=(60, texts.shape[1]))).astype(np.float32)
    images = [np.full((8, 8, 3), number, dtype=np.uint8) for number in range(60)]
    return Given(encoder, vectors), vectors, images, [NAMES[code] for code in codes]


def fitted(near_texts, stored=slice(0, 30), **params):
    """A classifier that has learned some of the images."""
    given, _, images, labels = near_texts
    params = {"transform": None, **params}
    return RetrievalClassifier(given, store="memory", **params).fit(images[stored], labels[stored])


def zero_shot_logs(encoder, vectors, **params):
    """The log probabilities of CLIP's own classifier."""
    classifier = ZeroShotClassifier(encoder, NAMES, **params)
    return log_softmax(classifier.cosines(vectors) * encoder.text.logit_scale, axis=1)


@pytest.mark.parametrize("head", ["discriminant", SMALL["ridge"], SMALL["fused"], "quadratic"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 3])
def test_a_number_adds_the_texts_log_probabilities(encoder, near_texts, head, weight):
    """The head's log probabilities, plus the weight times those of the zero-shot classifier."""
    _, vectors, images, _ = near_texts
    with_text = fitted(near_texts, head=head, text_weight=weight).predict_proba(images[30:])
    alone = np.log(np.maximum(fitted(near_texts, head=head).predict_proba(images[30:]), 1e-300))
    expected = softmax(alone + weight * zero_shot_logs(encoder, vectors[30:]), axis=1)
    np.testing.assert_allclose(with_text, expected, atol=1e-6)


def test_votes_count_by_their_share_with_a_floor(encoder, near_texts):
    """Votes are logarithms of shares, of which a fiftieth is divided among all classes."""
    _, vectors, images, _ = near_texts
    found = fitted(near_texts, k=5, text_weight=2.0).predict_proba(images[30:])
    shares = fitted(near_texts, k=5).predict_proba(images[30:])
    logs = np.log(0.98 * shares + 0.02 / 3) + 2 * zero_shot_logs(encoder, vectors[30:])
    np.testing.assert_allclose(found, softmax(logs, axis=1), atol=1e-9)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_lengths_of_vectors_do_not_matter_to_texts(encoder, near_texts, metric, normalize):
    """A text's cosine is the same whatever length vectors are stored at."""
    _, vectors, images, _ = near_texts
    classifier = fitted(near_texts, text_weight=1e6, metric=metric, normalize=normalize)
    expected = zero_shot_logs(encoder, vectors).argmax(axis=1)
    assert classifier.predict(images).tolist() == [NAMES[code] for code in expected]


def test_names_and_templates_make_the_prompts(encoder, near_texts):
    """Names that are given stand in the prompts; other classes are called by their labels."""
    _, vectors, images, _ = near_texts
    classifier = fitted(
        near_texts,
        head="discriminant",
        text_weight=1e6,
        class_names={"flower": "bright tulip"},
        templates=["a photo of a {}.", "a drawing of {article} {}."],
    )
    named = {"flower": "bright tulip", "garden_wall": "garden wall", "temple": "temple"}
    zero_shot = ZeroShotClassifier(encoder, named, templates=classifier.templates)
    expected = zero_shot.cosines(vectors).argmax(axis=1)
    assert classifier.predict(images).tolist() == [NAMES[code] for code in expected]


def test_numbers_need_names(near_texts):
    """Labels that are numbers are answered with names, and refused without."""
    given, _, images, labels = near_texts
    numbers = [NAMES.index(label) for label in labels]
    classifier = RetrievalClassifier(given, store="memory", head="discriminant", text_weight="auto")
    classifier.fit(images[:30], numbers[:30])
    with pytest.raises(InvalidInputError, match=r"class 0 has no name.*class_names"):
        classifier.predict(images[30:])
    classifier.set_params(class_names=dict(enumerate(NAMES)))
    named = fitted(near_texts, head="discriminant", text_weight="auto").predict(images[30:])
    assert [NAMES[code] for code in classifier.predict(images[30:])] == named.tolist()


@pytest.mark.parametrize("head", SMALL.values(), ids=list(SMALL))
def test_weights_are_learned_of_what_is_stored(near_texts, head):
    """Texts that tell the classes apart count; texts of the wrong classes hardly do."""
    right = fitted(near_texts, head=head, k=3, text_weight="auto")
    turned = dict(zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True))
    wrong = fitted(near_texts, head=head, k=3, text_weight="auto", class_names=turned)
    told, lied = (each.head_.learned.weights["text"] for each in (right, wrong))
    assert told > 0.5
    assert lied < 0.7 * told


@pytest.mark.parametrize("head", SMALL.values(), ids=list(SMALL))
def test_weights_learned_are_those_of_the_contents_alone(near_texts, head):
    """The order in which images came, and the images that are asked for, change no weight."""
    given, _, images, labels = near_texts
    one = fitted(near_texts, head=head, k=3, text_weight="auto")
    other = RetrievalClassifier(given, store="memory", head=head, k=3, text_weight="auto")
    other.fit(images[29::-1], labels[29::-1])
    other.predict(images[30:])
    assert one.head_.learned.weights == pytest.approx(other.head_.learned.weights, rel=1e-6)


@pytest.mark.parametrize("head", SMALL.values(), ids=list(SMALL))
def test_texts_that_one_image_of_each_class_does_not_contradict_decide_alone(encoder, near_texts, head):
    """Where none can be left out, nothing speaks for the other parts."""
    _, vectors, images, _ = near_texts
    classifier = fitted(near_texts, slice(0, 3), head=head, text_weight="auto")
    weights = dict(classifier.head_.learned.weights)
    assert weights.pop("text") == 1
    assert set(weights.values()) == {1e-6}
    by_text = zero_shot_logs(encoder, vectors).argmax(axis=1)
    assert classifier.predict(images).tolist() == [NAMES[code] for code in by_text]


class Tower:
    """Texts of ten classes, each along one of the first axes."""

    logit_scale = 20.0

    def encode(self, prompts):
        """Tell a class by its name in the prompt."""
        codes = [next(code for code, name in enumerate(TEN) if name in prompt) for prompt in prompts]
        return np.eye(10, 20, dtype=np.float32)[codes]


def ten_classes(codes, called, certain, beside, **params):
    """A classifier that has learned a vector of each code, and images that stand for these vectors.

    The texts hold each to be of the class that it is ``called``, with the probability ``certain``. Its other
    half, of ten numbers, lies ``beside`` the texts.
    """
    near = np.eye(10)[called] * np.log(certain * 9 / (1 - certain)) / Tower.logit_scale
    away = normalize(beside) * np.sqrt(1 - (near**2).sum(axis=1, keepdims=True))
    given = Given(SimpleNamespace(dim=20, text=Tower()), np.hstack([near, away]).astype(np.float32))
    images = [np.full((8, 8, 3), number, dtype=np.uint8) for number in range(len(codes))]
    classifier = RetrievalClassifier(given, store="memory", transform=None, text_weight="auto", **params)
    return classifier.fit(images, [TEN[code] for code in codes]), images


@pytest.mark.parametrize("head", SMALL.values(), ids=list(SMALL))
@pytest.mark.parametrize(
    ("certain", "wrong", "expected"),
    [(0.98, 0, "trusted"), (0.95, 1, "trusted"), (0.98, 2, "doubted"), (0.98, 3, "useless")],
)
def test_texts_that_one_image_of_each_class_contradicts_count_by_what_they_tell(
    head, certain, wrong, expected
):
    """The share of what they claim to tell; nothing, where that is hardly more than chance tells."""
    called = np.arange(10)
    called[:wrong] = np.roll(np.arange(10), 5)[:wrong]
    beside = np.random.default_rng(0).normal(size=(10, 10))
    classifier, _ = ten_classes(np.arange(10), called, certain, beside, head=head, k=3)
    weights = dict(classifier.head_.learned.weights)
    right, other = np.log(certain), np.log((1 - certain) / 9)
    claimed = np.log(10) + certain * right + (1 - certain) * other
    told = np.log(10) + (1 - wrong / 10) * right + wrong / 10 * other
    assert told > 0
    text = {"trusted": 1, "doubted": told / claimed, "useless": 1e-6}[expected]
    assert weights.pop("text") == pytest.approx(text, rel=0.01)  # of which a thousandth is for all classes
    others = max((1 - text) / len(weights), 1e-6)
    assert list(weights.values()) == pytest.approx([others] * len(weights), rel=0.01)


@pytest.mark.parametrize("head", SMALL.values(), ids=list(SMALL))
def test_images_count_beside_texts_only_where_they_surely_help(head):
    """Of images that tell nothing more than the texts, and of images that tell all that the texts do not."""
    rng = np.random.default_rng(0)
    codes = np.arange(80) % 10
    called = np.where(np.arange(80) % 4 < 3, codes, (codes + 1 + np.arange(80) // 20) % 10)
    noise = rng.normal(size=(80, 10))
    classifier, images = ten_classes(codes, called, 0.75, noise, head=head, k=3)
    weights = dict(classifier.head_.learned.weights)
    assert weights.pop("text") > 0.5
    assert set(weights.values()) == {1e-6}
    assert classifier.predict(images).tolist() == [TEN[code] for code in called]
    told = noise / 10 + 3 * np.eye(10)[codes]
    classifier, images = ten_classes(codes, called, 0.75, told, head=head, k=3)
    assert max(classifier.head_.learned.weights.values()) > 0.1
    assert classifier.predict(images).tolist() == [TEN[code] for code in codes]


def test_texts_that_are_the_same_leave_it_to_the_images():
    """Of two classes with one name, the texts say nothing."""
    beside = np.eye(10)
    names = {**{name: name for name in TEN}, TEN[1]: TEN[0]}
    classifier, images = ten_classes(
        np.arange(10), np.arange(10), 0.98, beside, head="discriminant", class_names=names
    )
    assert classifier.predict(images)[[0, 2, 3]].tolist() == [TEN[0], TEN[2], TEN[3]]


@pytest.mark.parametrize("head", SMALL.values(), ids=list(SMALL))
@pytest.mark.parametrize("weight", [1.0, "auto"])
def test_a_class_without_an_image_is_as_probable_as_its_text(encoder, near_texts, head, weight):
    """With any head: none says anything of a class that it has not seen."""
    given, vectors, images, labels = near_texts
    kept = [number for number in range(30) if labels[number] != "temple"]
    classifier = RetrievalClassifier(given, store="memory", head=head, k=3, text_weight=weight)
    classifier.partial_fit([images[n] for n in kept], [labels[n] for n in kept], classes=NAMES)
    text = np.exp(zero_shot_logs(encoder, vectors[30:]))
    np.testing.assert_allclose(classifier.predict_proba(images[30:])[:, 2], text[:, 2], atol=1e-6)


@pytest.mark.parametrize("weight", [1.0, "auto"])
@pytest.mark.parametrize("head", SMALL.values(), ids=list(SMALL))
def test_a_class_of_no_probability_is_never_answered(near_texts, head, weight):
    """Whatever the texts say of it."""
    classifier = fitted(near_texts, head=head, k=3, text_weight=weight, priors=[1, 1, 0])
    assert not classifier.predict_proba(near_texts[2][30:])[:, 2].any()


def test_a_class_is_answered_before_its_first_image(encoder, near_texts):
    """A listed class without an image is as probable as the texts hold it to be."""
    given, vectors, images, labels = near_texts
    kept = [number for number in range(30) if labels[number] != "temple"]
    classifier = RetrievalClassifier(given, store="memory", head="discriminant", text_weight=1.0)
    classifier.partial_fit([images[n] for n in kept], [labels[n] for n in kept], classes=NAMES)
    assert classifier.classes_.tolist() == NAMES
    shares = classifier.predict_proba(images[30:])
    text = np.exp(zero_shot_logs(encoder, vectors[30:]))
    np.testing.assert_allclose(shares[:, 2], text[:, 2], atol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    of_head = RetrievalClassifier(given, store="memory", head="discriminant")
    of_head.fit([images[n] for n in kept], [labels[n] for n in kept])
    head = of_head.predict_proba(images[30:]) * text[:, :2]
    between = shares[:, :2] / shares[:, :2].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(between, head / head.sum(axis=1, keepdims=True), atol=1e-6)
    assert "temple" in classifier.predict(images[30:]).tolist()
    classifier.set_params(text_weight=0)
    assert not classifier.predict_proba(images[30:])[:, 2].any()


def test_names_of_no_class_are_refused(near_texts):
    """A name of what is none of the classes is told of, with the classes; listing it helps."""
    _, _, images, labels = near_texts
    names = {"tempel": "temple"}
    classifier = fitted(near_texts, text_weight=1.0, class_names=names)
    with pytest.raises(InvalidInputError, match=r"'tempel', which is none of the 3 classes.*'temple'"):
        classifier.predict(images[30:])
    classifier.partial_fit(images[:1], labels[:1], classes=["tempel"])
    assert classifier.predict_proba(images[30:]).shape == (30, 4)
    with pytest.raises(InvalidInputError, match="another type"):
        classifier.set_params(class_names={1: "one"}).predict(images[30:])


def test_explanations_show_what_the_texts_say(near_texts):
    """The texts are one of the parts, beside those of the head."""
    _, _, images, _ = near_texts
    for head, parts in (
        (SMALL["fused"], {"votes", "discriminant", "ridge", "text"}),
        ("votes", {"votes", "text"}),
    ):
        classifier = fitted(near_texts, head=head, text_weight="auto")
        (explanation,) = classifier.explain(images[40:41])
        assert {part.name for part in explanation.parts} == parts
        assert explanation.answer == classifier.predict(images[40:41])[0]
    report = classifier.evaluate(images[30:], near_texts[3][30:])
    assert report.to_dict()["head"] == "votes + text"


@pytest.mark.parametrize("value", ["automatic", -1, float("nan"), float("inf"), True, [1.0]])
def test_weights_that_are_none_are_refused(near_texts, value):
    """Anything but a number of at least 0, 'auto' and None."""
    with pytest.raises(InvalidInputError, match="text_weight"):
        fitted(near_texts, text_weight=value)


def test_texts_need_vectors_that_lie_beside_them(tiny_model, near_texts, class_folder):
    """Without a text tower, or before the stage final, an error says what to do, before an image is read."""
    with pytest.raises(InvalidInputError, match=r"takes vectors.*text_weight=None"):
        RetrievalClassifier(text_weight=1.0).fit([[0.0], [1.0]], ["a", "b"])
    early = RetrievalClassifier(StagedEncoder(tiny_model, stage="mid"), text_weight="auto")
    with pytest.raises(InvalidInputError, match=r"needs stage='final'.*'mid'"):
        early.fit(class_folder / "train")
    given = near_texts[0]
    mute = Given(given, given._vectors)
    del mute.text
    with pytest.raises(InvalidInputError, match="Given has none"):
        RetrievalClassifier(mute, text_weight=1.0).fit(near_texts[2], near_texts[3])


def test_names_and_templates_that_are_wrong_are_told_of_at_fit(near_texts):
    """A sequence of names, an iterator of templates, and a prompt that is too long."""
    for params, message in (
        ({"class_names": NAMES}, "must be a mapping"),
        ({"class_names": {"flower": ""}}, "not empty"),
        ({"templates": "no place"}, "template"),
        ({"templates": iter(["{}"])}, "read only once"),
        ({"class_names": {"flower": "flower " * 200}}, "tokens"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            fitted(near_texts, text_weight=1.0, **params)


def test_auto_needs_a_head_that_leaves_images_out(near_texts):
    """The quadratic discriminant cannot; a number helps."""
    classifier = fitted(near_texts, head="quadratic", text_weight="auto")
    with pytest.raises(InvalidInputError, match=r"'quadratic'.*pass a number"):
        classifier.predict(near_texts[2][30:])


def test_texts_are_encoded_once_and_not_pickled(near_texts, monkeypatch):
    """Questions after the first encode no prompt; a copy encodes its own."""
    _, _, images, _ = near_texts
    classifier = fitted(near_texts, head="discriminant", text_weight="auto")
    answers = classifier.predict(images[30:])
    tower, encoded = classifier.encoder.text, []
    encode = type(tower).encode
    monkeypatch.setattr(type(tower), "encode", lambda self, some: encoded.append(some) or encode(self, some))
    classifier.predict(images[30:])
    classifier.partial_fit(images[30:32], near_texts[3][30:32])
    classifier.predict(images[30:])
    assert not encoded
    assert "_texts" not in classifier.__getstate__()
    assert (
        answers.tolist()
        == fitted(near_texts, head="discriminant", text_weight="auto").predict(images[30:]).tolist()
    )
    assert len(encoded) == 1


def test_changes_are_followed(near_texts):
    """What is added and forgotten changes answers as a fresh fit would."""
    _, _, images, labels = near_texts
    classifier = fitted(near_texts, slice(0, 20), head=SMALL["fused"], text_weight="auto")
    classifier.predict(images[30:])
    classifier.partial_fit(images[20:30], labels[20:30])
    fresh = fitted(near_texts, head=SMALL["fused"], text_weight="auto")
    np.testing.assert_allclose(
        classifier.predict_proba(images[30:]), fresh.predict_proba(images[30:]), atol=1e-6
    )
    classifier.forget(label="temple")
    assert set(classifier.predict(images[30:])) <= {"flower", "garden_wall"}


def test_the_prior_serves_any_head(encoder, near_texts):
    """It is a head itself: its scores are of the classes that it answers."""
    classifier = fitted(near_texts, head=Discriminant(), text_weight="auto")
    rule = classifier.head_
    assert isinstance(rule.head, TextPrior)
    vectors = near_texts[1][:5]
    near = classifier.kneighbors(near_texts[2][:5], 1)
    scores = rule.learned.log_scores(Queries(vectors, near.first(0)))
    assert scores.shape == (5, 3)
    assert rule.describe() == {"head": "discriminant + text"}


def test_a_real_encoder_answers(encoder, class_folder):
    """Folders of images, fitted and evaluated with texts, end to end."""
    classifier = RetrievalClassifier(encoder, store="memory", head=SMALL["fused"], text_weight="auto")
    classifier.fit(class_folder / "train")
    report = classifier.evaluate(class_folder / "test")
    assert report.accuracy == classifier.score(class_folder / "test")
    copy = pickle.loads(pickle.dumps(classifier))
    assert not hasattr(copy, "_texts")
    assert copy.predict(class_folder / "test").tolist() == report.y_pred.tolist()


def test_texts_are_saved_and_loaded(near_texts, tmp_path):
    """A classifier that was loaded answers the same, with its weight, names and templates."""
    given, _, images, labels = near_texts
    numbers = [NAMES.index(label) for label in labels]
    classifier = RetrievalClassifier(given, store="memory", head="discriminant", text_weight="auto")
    classifier.set_params(class_names=dict(enumerate(NAMES)), templates=["a photo of a {}.", "{article} {}"])
    classifier.fit(images[:30], numbers[:30]).save(tmp_path / "saved")
    loaded = RetrievalClassifier.load(tmp_path / "saved", given)
    assert (loaded.text_weight, loaded.class_names) == ("auto", dict(enumerate(NAMES)))
    assert loaded.templates == classifier.templates
    np.testing.assert_allclose(
        loaded.predict_proba(images[30:]), classifier.predict_proba(images[30:]), atol=1e-9
    )
    classifier.set_params(templates=[str.upper])
    with pytest.raises(UnsupportedOperationError, match="template is a callable"):
        classifier.save(tmp_path / "saved")


def test_transformed_vectors_are_refused(near_texts):
    """Texts lie beside the encoder's own vectors; a store that is whitened can be turned back."""
    given, _, images, labels = near_texts
    with pytest.raises(InvalidInputError, match="transform=None"):
        fitted(near_texts, text_weight=1.0, transform="whiten")
    classifier = RetrievalClassifier(given, store="memory", head="discriminant", transform="whiten")
    classifier.fit(images[:30], labels[:30]).set_params(text_weight=1.0, transform="auto")
    with pytest.raises(InvalidInputError, match=r"went through a transform.*refit_transform"):
        classifier.predict(images[30:])
    classifier.set_params(transform=None).refit_transform()
    expected = fitted(near_texts, head="discriminant", text_weight=1.0).predict(images[30:])
    assert classifier.predict(images[30:]).tolist() == expected.tolist()


def test_heads_are_swept_without_texts(near_texts):
    """A sweep says that texts have to be set aside."""
    with pytest.raises(UnsupportedOperationError, match="text_weight=None"):
        fitted(near_texts, text_weight=1.0).sweep(near_texts[2][30:], near_texts[3][30:])
