"""Stored images found by text: CLIP's own ranking by the cosine, whatever the store ranks by."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.preprocessing import normalize

from clipretrieval import (
    CascadeClassifier,
    ClipRetrievalWarning,
    DimensionMismatchError,
    FunctionEncoder,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
    StagedEncoder,
    UnsupportedOperationError,
)
from clipretrieval.persistence.read_only_classifier import ReadOnlyClassifier
from clipretrieval.stores import MemoryStore

TEXTS = ["a red cup", "a temple", "flower"]


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, stage="final", precision="fp32")


@pytest.fixture(scope="module")
def train(class_folder):
    return class_folder / "train"


@pytest.fixture(scope="module")
def cosines(encoder, train):
    """Between each text and each stored image, shape (3, 24), computed by hand."""
    return normalize(encoder.text.encode(TEXTS)) @ normalize(encoder.encode(train)).T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"store": "memory"},
        {"metric": "cosine", "store": "chroma"},
        {"normalize": True},
        {"metric": "ip", "normalize": True},
    ],
)
def test_images_are_ranked_by_the_cosine(encoder, train, cosines, options):
    """Whether the store searches or all that it holds is read; the vectors' own lengths do not count."""
    classifier = RetrievalClassifier(encoder, **options).fit(train)
    near = classifier.search_text(TEXTS, k=5)
    assert near.ids.shape == (3, 5)
    assert near.distances.dtype == np.float32
    assert_allclose(near.distances, np.sort(1 - cosines, axis=1)[:, :5], atol=3e-6)
    every = classifier.search_text(TEXTS, k=24)
    for row in every.ids:
        assert len(set(row)) == 24
    records = classifier.store_.get(every.ids[0].tolist())
    assert records.labels.tolist() == every.labels[0].tolist()
    assert_array_equal(classifier.search_text("a temple", 5).ids, near.ids[1:2])


def test_many_stored_vectors_are_read_in_parts(encoder, train, monkeypatch):
    """Equal distances are in the order of their ids, as everywhere; int labels stay int."""
    labels = [number % 3 for number in range(24)]
    images = sorted(train.rglob("*.*g"))
    classifier = RetrievalClassifier(encoder, store="memory").fit(images, labels)
    whole = classifier.search_text(TEXTS, k=7)
    monkeypatch.setattr("clipretrieval.text_search._READ", 5)
    parts = classifier.search_text(TEXTS, k=7)
    for one, other in ((whole.ids, parts.ids), (whole.labels, parts.labels)):
        assert_array_equal(one, other)
    assert whole.labels.dtype == np.int64
    classifier.store_.upsert(
        ["zz", "aa"], classifier.store_.get([whole.ids[0, 0]] * 1).vectors[[0, 0]], [7, 7]
    )
    tied = classifier.search_text(TEXTS[0], k=3).ids[0].tolist()
    assert tied == sorted(["aa", whole.ids[0, 0], "zz"])


def test_templates_make_prompts(encoder, train, cosines):
    """Several are averaged as CLIP's ensembles are, and the text alone is the default."""
    classifier = RetrievalClassifier(encoder, metric="cosine").fit(train)
    ways = ["a photo of {article} {}.", lambda name: f"{name} in the sun"]
    near = classifier.search_text("orange", k=24, templates=ways)
    prompts = normalize(encoder.text.encode(["a photo of an orange.", "orange in the sun"]))
    expected = 1 - normalize(prompts.mean(axis=0, keepdims=True)) @ normalize(encoder.encode(train)).T
    assert_allclose(near.distances, np.sort(expected, axis=1), atol=3e-6)
    with pytest.raises(InvalidInputError, match="template"):
        classifier.search_text("orange", templates="a photo")


def test_fewer_stored_than_asked_for_is_padded(encoder, train):
    classifier = RetrievalClassifier(encoder).fit(sorted(train.rglob("*.*g"))[:3], list("aab"))
    with pytest.warns(ClipRetrievalWarning, match="k=10 is more than the 3 vectors"):
        near = classifier.search_text(["a", "b"])
    assert near.ids.shape == (2, 10)
    assert near.valid.sum(axis=1).tolist() == [3, 3]
    assert set(near.ids[0, 3:]) == set(near.labels[0, 3:]) == {""}


def test_a_kept_classifier_finds_the_same(encoder, train, tmp_path, command):
    """Loaded, asked only, or by the command, whose lines have the files."""
    classifier = RetrievalClassifier(encoder).fit(train)
    classifier.save(tmp_path / "kept")
    expected = classifier.search_text(TEXTS, k=2)
    for loaded in (RetrievalClassifier.load(tmp_path / "kept"), ReadOnlyClassifier.load(tmp_path / "kept")):
        assert_array_equal(loaded.search_text(TEXTS, k=2).ids, expected.ids)
    status, out, err = command("search", tmp_path / "kept", *TEXTS, "--k", 2, "--json")
    assert status == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert [[image["id"] for image in row["images"]] for row in rows] == expected.ids.tolist()
    assert rows[0]["images"][0]["cosine"] == pytest.approx(1 - expected.distances[0, 0], abs=1e-5)
    status, out, err = command("search", tmp_path / "kept", "flower", "--k", 1, "--template", "a {}")
    assert status == 0, err
    path, label, cosine = out.rstrip("\n").split("\t")
    assert path.startswith(str(train / label))
    assert -1 <= float(cosine) <= 1
    for arguments, told in (((" ",), "a text is empty"), (("a", "--k", 0), "--k must be")):
        status, _, err = command("search", tmp_path / "kept", *arguments)
        assert status == 2
        assert told in err


def test_a_cascade_is_searched_at_its_last_exit(encoder, train, tmp_path, command):
    cascade = CascadeClassifier(encoder, ("layer1", "final"), head="votes").fit(train)
    alone = RetrievalClassifier(encoder).fit(train)
    expected = alone.search_text(TEXTS, 3).ids
    assert_array_equal(cascade.search_text(TEXTS, 3).ids, expected)
    cascade.save(tmp_path / "kept")
    status, out, err = command("search", tmp_path / "kept", TEXTS[0], "--k", 3, "--json")
    assert status == 0, err
    assert [image["id"] for image in json.loads(out)["images"]] == expected[0].tolist()
    early = CascadeClassifier(encoder, ("pixel", "layer1"), head="votes").fit(train)
    with pytest.raises(InvalidInputError, match="index with stage='final'"):
        early.search_text("a cup")


def test_what_is_no_text_is_refused(encoder, train):
    classifier = RetrievalClassifier(encoder).fit(train)
    for wrong, told in (
        ("", "a text is empty"),
        (["a", " \n"], "a text is empty"),
        ([], "texts is empty"),
        (3, "texts must be a sequence of str"),
        ([b"a"], "texts"),
        ("word " * 99, "shorten it"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            classifier.search_text(wrong)
    with pytest.raises(InvalidInputError, match="k must be"):
        classifier.search_text("a", 0)
    with pytest.raises(NotFittedError):
        RetrievalClassifier(encoder).search_text("a")


def test_vectors_that_no_text_lies_beside_are_refused(encoder, train, tiny_model):
    images, labels = sorted(train.rglob("*.*g"))[:6], list("aaabbb")
    late = RetrievalClassifier(StagedEncoder(tiny_model, stage="late")).fit(images, labels)
    with pytest.raises(InvalidInputError, match="of 'late'; index with stage='final'"):
        late.search_text("a cup")
    with pytest.raises(InvalidInputError, match="takes vectors and has no encoder"):
        RetrievalClassifier().fit([[0.0], [1.0]], ["a", "b"]).search_text("a cup")
    white = RetrievalClassifier(encoder, transform="whiten").fit(train)
    with pytest.raises(UnsupportedOperationError, match="went through a transform"):
        white.search_text("a cup")
    white.set_params(transform=None).refit_transform()
    found = white.search_text(TEXTS, 3).distances
    assert_allclose(found, RetrievalClassifier(encoder).fit(train).search_text(TEXTS, 3).distances, atol=1e-5)


def test_a_store_that_cannot_list_has_to_rank_by_the_cosine(encoder, train):
    class Unlisted(MemoryStore):
        scan = None

    with pytest.raises(UnsupportedOperationError, match=r"Unlisted cannot list.*normalize=True"):
        RetrievalClassifier(encoder, store=Unlisted()).fit(train).search_text("a cup")
    cosine = RetrievalClassifier(encoder, store=Unlisted(metric="cosine"), metric="cosine").fit(train)
    assert cosine.search_text("a cup", 2).valid.all()


def test_encoders_of_ones_own_bring_their_own_texts(train):
    """A function, or a method `encode_text`; what it returns is checked."""

    def colors(images):
        return [np.asarray(image).mean(axis=(0, 1)) for image in images]

    red, blue = [255.0, 0, 0], [0, 0, 255.0]
    answers = {"red": red, "blue": blue, "nothing": [0, 0, 0], "nan": [np.nan, 0, 0], "short": [1.0]}
    encoder = FunctionEncoder(
        colors, name="colors", version=1, encode_text=lambda texts: [answers[text] for text in texts]
    )
    classifier = RetrievalClassifier(encoder).fit(train)
    near = classifier.search_text(["red", "blue"], k=24)
    cosines = normalize([red, blue]) @ normalize(encoder.encode(train)).T
    assert_allclose(near.distances, np.sort(1 - cosines, axis=1), atol=1e-6)
    for text in ("nothing", "nan"):
        with pytest.raises(InvalidInputError, match="NaN, infinite values or nothing but zeros"):
            classifier.search_text(text)
    with pytest.raises(DimensionMismatchError, match="returned 1 dimensions"):
        classifier.search_text("short")
    silent = RetrievalClassifier(FunctionEncoder(colors, name="colors", version=1)).fit(train)
    with pytest.raises(InvalidInputError, match=r"FunctionEncoder has no text tower.*encode_text=function"):
        silent.search_text("red")


def test_kneighbors_says_where_texts_go(encoder, train):
    """A text, or its vector, where images are asked for; a missing file is missing as ever."""
    classifier = RetrievalClassifier(encoder).fit(train)
    vectors = encoder.text.encode(["a red cup"])
    for wrong in ("a red cup", ["a red cup"], "cup", "cup " * 99):
        with pytest.raises(InvalidInputError, match=r"no file or folder.*search_text\("):
            classifier.kneighbors(wrong)
    for vector in (vectors, vectors[0], torch.from_numpy(vectors)):
        with pytest.raises(InvalidInputError, match=r"perhaps vectors.*search_text\("):
            classifier.kneighbors(vector)
    with pytest.raises(Exception, match=r"cannot decode image 'cup\.png'"):
        classifier.kneighbors("cup.png")
    with pytest.raises(InvalidInputError, match="missing") as caught:
        classifier.kneighbors("some/missing/folder")
    assert "search_text" not in str(caught.value)
