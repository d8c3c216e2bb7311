"""Other towers where CLIP's ResNets were at home: threads, scikit-learn, and search by text."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import open_clip
import pandas as pd
import pytest
import timm
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import normalize
from tiny_towers import SIGLIP, TOWERS, VIT, write_clip

from clipretrieval import InvalidInputError, RetrievalClassifier, StagedEncoder, ZeroShotClassifier
from clipretrieval.encoding.staged_encoder import stopped_at

TEXTS = ["a temple", "a red flower"]


@pytest.fixture(scope="module")
def encoder():
    return StagedEncoder("timm:test_vit", None, "mid", pooling="cls", precision="fp32")


@pytest.fixture(scope="module")
def train(class_folder):
    return class_folder / "train"


@pytest.mark.parametrize("name", ["open_clip ViT", "timm EVA02", "timm ConvNeXt"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_get_what_each_gets_alone(photographs, name, precision):
    """To the bit: how many rows a product has decides on its rounding, so no two images share a pass."""
    encoder = StagedEncoder(TOWERS[name].make(), stage="final", precision=precision, device="cpu")
    alone = [encoder.encode([photo]) for photo in photographs]
    with ThreadPoolExecutor(len(photographs)) as pool:
        for _ in range(4):
            for found, expected in zip(
                pool.map(lambda photo: encoder.encode([photo]), photographs), alone, strict=True
            ):
                assert_array_equal(found, expected)


def test_it_is_a_transformer_of_scikit_learns(encoder, train):
    """With arguments to get and to set, clones that share the weights, and frames."""
    vectors = encoder.encode(train)
    copied = clone(encoder)
    assert copied.get_params() == encoder.get_params()
    assert copied.get_params()["model"] == "timm:test_vit"
    copied.set_params(stage="late", pooling="mean").set_output(transform="pandas")
    assert (copied.stage, copied.pooling, encoder.stage, encoder.pooling) == ("late", "mean", "mid", "cls")
    assert copied._tower is encoder._tower
    assert copied.fingerprint == stopped_at(encoder, "late", "mean").fingerprint
    frame = copied.transform(train)
    assert isinstance(frame, pd.DataFrame)
    assert frame.columns[63] == "stagedencoder63"
    assert_array_equal(frame.to_numpy(), stopped_at(encoder, "late", "mean").encode(train))
    assert_array_equal(encoder.fit_transform(train), vectors)
    for wrong, told in (({"stage": "layer2"}, r"block\.0"), ({"pooling": "median"}, "cls")):
        with pytest.raises(InvalidInputError, match=told):
            copied.set_params(**wrong)


@pytest.mark.parametrize("model", ["timm:test_vit", "module"])
def test_stages_and_poolings_are_searched(model, encoder, train):
    """Also those of a module that was built by the caller."""
    made = encoder if model != "module" else StagedEncoder(timm.create_model("test_vit"), precision="fp32")
    images = sorted(str(path) for path in train.rglob("*.*g"))
    labels = [path.split("/")[-2] for path in images]
    pipeline = make_pipeline(made, LogisticRegression(C=0.1))
    grid = {"stagedencoder__stage": ["block.0", "mid"], "stagedencoder__pooling": ["cls", "mean"]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(images, labels)
    best = search.best_estimator_["stagedencoder"]
    assert best._tower is made._tower
    by_hand = stopped_at(made, search.best_params_["stagedencoder__stage"], best.pooling)
    assert_array_equal(best.transform(images), by_hand.encode(images))
    assert search.best_score_ > 0.8


@pytest.mark.parametrize("config", [VIT, SIGLIP], ids=["ViT", "SigLIP"])
def test_images_are_found_by_text(config, train, tmp_path, command):
    """By the cosines that open_clip's own model gives, and by the command."""
    name = write_clip(tmp_path / "model", config)
    encoder = StagedEncoder(name, stage="final", precision="fp32")
    classifier = RetrievalClassifier(encoder, metric="cosine").fit(train)
    model, _, _ = open_clip.create_model_and_transforms(name)
    images = encoder.encode(train)
    with torch.inference_mode():
        texts = model.eval().encode_text(open_clip.SimpleTokenizer(context_length=77)(TEXTS)).numpy()
    cosines = normalize(texts) @ normalize(images).T
    near = classifier.search_text(TEXTS, k=24)
    assert_allclose(near.distances, np.sort(1 - cosines, axis=1), atol=1e-5)
    classifier.save(tmp_path / "kept")
    status, said, told = command("search", tmp_path / "kept", *TEXTS, "--k", 3, "--json")
    assert status == 0, told
    found = [[image["id"] for image in json.loads(line)["images"]] for line in said.splitlines()]
    assert found == near.ids[:, :3].tolist()


def test_a_tower_without_texts_says_so_in_one_way(encoder, train, tmp_path, command):
    """Whoever asks, and before it is said that another stage is needed, which would not help."""
    told = (
        r"test_vit\S* has no text tower, which search by text, text_weight and zero-shot answers need; "
        "choose a CLIP model, such as 'ViT-B-32'"
    )
    for stage in ("mid", "final"):
        classifier = RetrievalClassifier(stopped_at(encoder, stage), store="memory").fit(train)
        with pytest.raises(InvalidInputError, match=told):
            classifier.search_text(TEXTS)
    with pytest.raises(InvalidInputError, match=told):
        ZeroShotClassifier(encoder, ["temple", "flower"]).predict(train)
    with pytest.raises(InvalidInputError, match=told):
        RetrievalClassifier(stopped_at(encoder, "final"), text_weight=0.5).fit(train)
    RetrievalClassifier(encoder).fit(train).save(tmp_path / "kept")
    status, _, said = command("search", tmp_path / "kept", "a temple")
    assert status == 2
    assert "has no text tower, which search by text" in " ".join(said.split())
    module = StagedEncoder(timm.create_model("test_vit"), stage="final", precision="fp32")
    with pytest.raises(InvalidInputError, match=r"has no text tower, which search by text.*whole CLIP model"):
        RetrievalClassifier(module, store="memory").fit(train).search_text(TEXTS)
