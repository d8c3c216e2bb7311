"""CLIP's own answer, held against open_clip's model and arithmetic written out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import jsonschema
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from sklearn.base import clone
from tiny_models import TINY, enliven
from torch import nn

from clipretrieval import (
    ClipRetrievalWarning,
    EvaluationReport,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    WeightsUnavailableError,
    ZeroShotClassifier,
)
from clipretrieval.encoding.text_encoder import load_clip
from clipretrieval.encoding.weights import tower_tensors
from clipretrieval.encoding.weights.model_source import resolve
from clipretrieval.prompts import PHOTO_PROMPT, fill

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STUDY = [
    *("an airplane", "an automobile", "a bird", "a cat", "a deer"),
    *("a dog", "a frog", "a horse", "a ship", "a truck"),
]
ENSEMBLE = ("a photo of a {}.", "a drawing of {article} {}.", lambda name: f"itap of the large {name}.")


def by_hand(clip, prompts, pictures):
    """CLIP's probabilities from open_clip's own model, by OpenAI's recipe for prompts."""
    tokenizer = open_clip.get_tokenizer("RN50")
    transform = open_clip.image_transform(64, is_train=False)
    with torch.inference_mode():
        images = clip.encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)
        texts = []
        for some in prompts:
            mean = clip.encode_text(tokenizer(some), normalize=True).mean(dim=0)
            texts.append(mean / mean.norm())
        return (clip.logit_scale.exp() * images @ torch.stack(texts).T).softmax(dim=1).numpy()


@pytest.fixture(scope="module")
def encoder(tiny_model):
    """An encoder in float32, so that it can be held against open_clip."""
    return StagedEncoder(tiny_model, stage="mid", precision="fp32")


@pytest.mark.parametrize("templates", [PHOTO_PROMPT, ENSEMBLE])
def test_probabilities_are_those_of_open_clip(tiny_model, encoder, photographs, templates):
    """Single prompts and ensembles give what open_clip's model and OpenAI's recipe give."""
    clip = open_clip.create_model(tiny_model).eval()
    listed = [templates] if isinstance(templates, str) else templates
    prompts = [[fill(template, name) for template in listed] for name in CIFAR]
    expected = by_hand(clip, prompts, photographs)
    classifier = ZeroShotClassifier(encoder, CIFAR, templates=templates)
    np.testing.assert_allclose(classifier.predict_proba(photographs), expected, atol=1e-5)
    assert classifier.predict(photographs).tolist() == [CIFAR[code] for code in expected.argmax(axis=1)]


def test_prompts_are_the_studys_by_default(encoder):
    """The ten prompts of the study come out of the ten classes' names."""
    assert ZeroShotClassifier(encoder, CIFAR).prompts_ == [[prompt] for prompt in STUDY]


def test_names_of_folders_are_read_as_words(encoder):
    """Underscores become spaces in a sequence's names; a mapping's names are taken as they are."""
    assert ZeroShotClassifier(encoder, ["fire_engine"]).prompts_ == [["a fire engine"]]
    mapped = ZeroShotClassifier(encoder, {7: "ice_axe", 3: "cat"})
    assert mapped.classes_.tolist() == [3, 7]
    assert mapped.prompts_ == [["a cat"], ["an ice_axe"]]


def test_report_is_that_of_the_answers(encoder, class_folder):
    """The report's accuracy, classes and distances follow from the answers."""
    classifier = ZeroShotClassifier(encoder, ["flower", "temple"])
    report = classifier.evaluate(class_folder / "test")
    assert isinstance(report, EvaluationReport)
    answers = classifier.predict(class_folder / "test")
    truth = np.repeat(["flower", "temple"], 5)
    assert report.y_pred.tolist() == answers.tolist()
    assert report.y_true.tolist() == truth.tolist()
    assert report.accuracy == classifier.score(class_folder / "test") == (answers == truth).mean()
    vectors = encoder.encode_stages(class_folder / "test", ("final",))["final"]
    np.testing.assert_allclose(report.distances, 1 - classifier.cosines(vectors).max(axis=1), atol=1e-6)
    assert report.to_dict()["stage"] == "zero-shot"
    assert report.to_dict()["prompts"] == [["a flower"], ["a temple"]]
    schema = json.loads(
        (Path(__file__).parents[1] / "docs" / "report.schema.json").read_text(encoding="utf-8")
    )
    assert schema["properties"]["prompts"]["items"]["items"] == {"type": "string"}
    jsonschema.validate(report.to_dict(), schema)
    assert "accuracy" in str(report)


def test_numbers_can_be_labels(encoder, photographs):
    """A mapping's labels are the answers, and the true labels may be numbers too."""
    classifier = ZeroShotClassifier(encoder, {4: "temple", 2: "flower"})
    report = classifier.evaluate(photographs, [4] * 4 + [2] * 4)
    assert report.y_true.tolist() == [4] * 4 + [2] * 4
    assert set(classifier.predict(photographs)) <= {2, 4}


def test_image_tower_is_loaded_once(tiny_model, class_folder, monkeypatch):
    """Retrieval and zero-shot answers from one encoder read its image tower once, the text tower apart."""
    loaded, read = [], tower_tensors.read_tower
    monkeypatch.setattr(tower_tensors, "read_tower", lambda *given: loaded.append(given) or read(*given))
    encoder = StagedEncoder(tiny_model, stage="mid")
    RetrievalClassifier(encoder, store="memory").fit(class_folder / "train").predict(class_folder / "test")
    classifier = ZeroShotClassifier(encoder, ["flower", "temple"])
    classifier.predict(class_folder / "test")
    assert len(loaded) == 1
    assert classifier.encoder_ is encoder
    assert isinstance(encoder.text._clip.visual, nn.Identity)


def test_model_by_name_or_as_a_module_gives_the_same(tiny_model, photographs):
    """A name and the built model answer alike, and the built one stays as it was."""
    named = ZeroShotClassifier(tiny_model, CIFAR)
    clip = open_clip.create_model(tiny_model).train()
    built = ZeroShotClassifier(clip, CIFAR)
    np.testing.assert_allclose(built.predict_proba(photographs), named.predict_proba(photographs), atol=1e-6)
    assert clip.training
    assert clip.visual is not None
    assert all(parameter.requires_grad for parameter in clip.parameters())


def test_random_weights_are_one_model(photographs):
    """With a seed instead of weights, the text tower belongs to the same CLIP as the image tower."""
    source = resolve("RN50", None)
    clip = load_clip(source, 3)
    encoder = StagedEncoder("RN50", None, precision="fp32", seed=3)
    tokens = open_clip.get_tokenizer("RN50")(["a cat"])
    with torch.inference_mode():
        expected = clip.encode_text(tokens).numpy()
    np.testing.assert_allclose(encoder.text.encode(["a cat"]), expected, atol=1e-6)
    assert encoder.text.logit_scale == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("form", ["halves", "extra entries", "quickgelu by name", "ordinary"])
def test_text_of_openai_weights_runs_with_quick_gelu(tmp_path, tiny_model_name, form):
    """Texts are encoded with the activation that the weights were trained with, however they were loaded."""
    torch.manual_seed(0)
    clip = enliven(open_clip.CLIP(**TINY, quick_gelu=form != "ordinary"))
    state = clip.state_dict()
    if form == "halves":
        state = {key: value.half() if ".conv" in key else value for key, value in state.items()}
    if form == "extra entries":
        extra = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
        state |= {key: torch.tensor(value) for key, value in extra.items()}
    path = tmp_path / "checkpoint.pt"
    torch.save(state, path)
    name = f"{tiny_model_name}-quickgelu" if form == "quickgelu by name" else tiny_model_name
    with torch.inference_mode():
        expected = clip.encode_text(open_clip.get_tokenizer("RN50")(STUDY)).numpy()
    found = StagedEncoder(name, path).text.encode(STUDY)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def tiny_model_name(tmp_path_factory):
    """A small model that open_clip knows by name, with and without QuickGELU."""
    folder = tmp_path_factory.mktemp("configs")
    for suffix, extra in (("", {}), ("-quickgelu", {"quick_gelu": True})):
        (folder / f"RNshort{suffix}.json").write_text(json.dumps({**TINY, **extra}))
    open_clip.add_model_config(folder)
    return "RNshort"


def test_image_tower_alone_is_refused(tmp_path, tiny_model_name, photographs):
    """A checkpoint without a text tower gives vectors, but no zero-shot answers."""
    clip = enliven(open_clip.CLIP(**TINY))
    path = tmp_path / "visual.safetensors"
    save_file(clip.visual.state_dict(), path)
    encoder = StagedEncoder(tiny_model_name, path, "final")
    assert encoder.encode(photographs[:1]).shape == (1, 24)
    with pytest.raises(WeightsUnavailableError, match="image tower alone"):
        ZeroShotClassifier(encoder, CIFAR).predict(photographs)
    with pytest.raises(InvalidInputError, match="no text tower"):
        ZeroShotClassifier(clip.visual, CIFAR).predict(photographs)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], PHOTO_PROMPT, "class_names is empty"),
        ("cat", PHOTO_PROMPT, "must be a sequence of str"),
        (["cat", "cat"], PHOTO_PROMPT, "twice"),
        ([1, 2], PHOTO_PROMPT, "mapping"),
        ({1: " "}, PHOTO_PROMPT, "not empty"),
        ({1: "cat", "b": "dog"}, PHOTO_PROMPT, "one type"),
        (["cat"], [], "templates is empty"),
        (["cat"], "a photo", "places"),
        (["cat"], "a {colour} {}", "places"),
        (["cat"], "a {", "cannot be read"),
        (["cat"], "a {:d}", "a format behind its name"),
        (["cat"], "{:>1000000000}", "a format behind its name"),
        (["cat"], "{!r:>{0}}", "a format behind its name"),
        (["cat"], lambda name: 5, "must return a str"),
        (["cat"], 5, "type int"),
        (["cat"], "very " * 100 + "{}", "tokens"),
    ],
)
def test_what_cannot_work_is_refused(encoder, photographs, names, templates, message):
    """Class names and templates are checked before a picture is read, and the message says what is wrong."""
    with pytest.raises(InvalidInputError, match=message):
        ZeroShotClassifier(encoder, names, templates=templates).predict(photographs)


@pytest.mark.parametrize("label", ["zebra", 1])
def test_unseen_labels_are_refused(encoder, photographs, label):
    """No answer can equal a label that is none of the classes, so measuring on it is refused by name."""
    classifier = ZeroShotClassifier(encoder, ["flower", "temple"])
    with pytest.raises(InvalidInputError, match=f"{label!r} is none of the 2 classes"):
        classifier.evaluate(photographs, [label] * len(photographs))
    with pytest.raises(InvalidInputError, match="no label"):
        classifier.evaluate(photographs)
    with pytest.raises(InvalidInputError, match="no images"):
        classifier.predict([])


def test_pictures_that_cannot_be_decoded_are_skipped_on_request(encoder, photographs):
    """Skipped pictures are listed in the report, and all others answered."""
    report = ZeroShotClassifier(encoder, ["flower", "temple"]).evaluate(
        [photographs[0], b"no picture", photographs[1]], ["temple"] * 3, on_error="skip"
    )
    assert report.n_test == 2
    assert [item.index for item in report.skipped] == [1]


def test_it_is_an_estimator(encoder, photographs):
    """It stores its arguments as they are, can be cloned and pickled, and may be fitted without effect."""
    names = ["flower", "temple"]
    classifier = ZeroShotClassifier(encoder, names, templates=PHOTO_PROMPT)
    assert classifier.get_params(deep=False)["class_names"] is names
    expected = classifier.predict_proba(photographs)
    for other in (clone(classifier), pickle.loads(pickle.dumps(classifier)), classifier.fit()):
        np.testing.assert_allclose(other.predict_proba(photographs), expected, atol=1e-6)
    classifier.set_params(templates="a bad photo of a {}.")
    assert not np.allclose(classifier.predict_proba(photographs), expected, atol=1e-6)


def test_what_can_be_read_once_is_read_once(encoder, photographs):
    """Generators of names and templates give what sequences give, however often is asked."""
    plain = ZeroShotClassifier(encoder, ["cat", "dog"], templates=["a {}", "the {}"])
    made = ZeroShotClassifier(encoder, iter(["cat", "dog"]), templates=(text for text in ("a {}", "the {}")))
    for classifier in (made, clone(made), plain.set_params(templates=iter(["a {}", "the {}"]))):
        assert classifier.prompts_ == [["a cat", "the cat"], ["a dog", "the dog"]]
        assert classifier.predict(photographs).tolist() == made.predict(photographs).tolist()


def test_classes_with_one_prompt_are_warned_of(encoder):
    """Two names that come out as the same prompts cannot be told apart, which a warning says."""
    with pytest.warns(
        ClipRetrievalWarning, match=r"'a b' and 'a_b' have the same prompts \('an a b'\)"
    ) as caught:
        ZeroShotClassifier(encoder, ["a b", "a_b", "c"]).fit()
    assert caught[0].filename == __file__
    ZeroShotClassifier(encoder, {"a b": "a b", "a_b": "another"}).fit()


def test_reports_are_made_batch_by_batch(tiny_model, class_folder, monkeypatch):
    """However many images there are, cosines and probabilities of only a batch of them are held."""
    encoder = StagedEncoder(tiny_model, batch_size=2)
    classifier = ZeroShotClassifier(encoder, ["flower", "temple"])
    shares = classifier.predict_proba(class_folder / "test")
    rows = []
    monkeypatch.setattr("clipretrieval.zeroshot._TOGETHER", 2)
    real = ZeroShotClassifier.probabilities
    monkeypatch.setattr(
        ZeroShotClassifier,
        "probabilities",
        lambda self, cosines: rows.append(len(cosines)) or real(self, cosines),
    )
    report = classifier.evaluate(class_folder / "test")
    assert max(rows) <= 2
    assert sum(rows) == 10
    np.testing.assert_allclose(report.confidence, shares.max(axis=1))
