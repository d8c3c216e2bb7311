"""Encoders as scikit-learn transformers: pipelines, searches, frames, and its own checks where they apply."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from clipretrieval import FingerprintMismatchError, FunctionEncoder, InvalidInputError, RetrievalClassifier
from clipretrieval.encoding.staged_encoder import StagedEncoder, stopped_at

# All others give arrays of shape (n, d), which hold no images; scikit-learn itself skips them, by the tag
# ``two_d_array``. `check_parameters_default_constructible` fails: an argument that is none of the face, for
# models from files, is not in `get_params`.
CHECKS = [
    *("check_estimator_cloneable", "check_estimator_repr", "check_estimator_tags_renamed"),
    *("check_valid_tag_types", "check_get_params_invariance", "check_set_params", "check_mixin_order"),
    "check_no_attributes_set_in_init",
]


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, stage="layer1", precision="fp32")


@pytest.fixture(scope="module")
def images(class_folder):
    return sorted(str(path) for path in (class_folder / "train").rglob("*.*g"))


@pytest.fixture(scope="module")
def labels(images):
    return [path.split("/")[-2] for path in images]


def sizes(images):
    return [[image.width, image.height] for image in images]


@pytest.mark.filterwarnings("ignore:InvalidInputError occurred during set_params")
@pytest.mark.parametrize("name", [name for name in CHECKS if hasattr(estimator_checks, name)])
def test_scikit_learns_checks_of_the_interface(encoder, name):
    for each in (clone(encoder), FunctionEncoder(sizes, name="sizes", version=1)):
        if name == "check_set_params" and isinstance(each, StagedEncoder):
            continue  # it wants the same object back, and a stage's name is an equal one
        getattr(estimator_checks, name)(type(each).__name__, each)


def test_it_needs_no_fitting(encoder, images):
    """`fit` reads no image and refuses what can hold none; `transform` is `encode`."""
    assert encoder.fit(["missing.png"], [1]) is encoder
    check_is_fitted(encoder)
    assert_array_equal(encoder.transform(images), encoder.encode(images))
    assert_array_equal(encoder.fit_transform(iter(images)), encoder.encode(images))
    with pytest.raises(InvalidInputError, match="no images to fit on"):
        encoder.fit([])
    for wrong in (3, None, {"a": 1}):
        with pytest.raises(InvalidInputError, match="images is"):
            encoder.fit(wrong)


def test_columns_have_names_and_frames_keep_the_index(encoder, images):
    """Asked for by `set_output`, which pickles and clones keep and others do not get, or for the process."""
    table = pd.DataFrame({"path": images[:4]}, index=["a", "b", "c", "d"])
    framed = clone(encoder).set_output(transform="pandas")
    found = framed.transform(table)
    assert found.index.tolist() == ["a", "b", "c", "d"]
    assert found.columns.tolist() == encoder.get_feature_names_out().tolist()
    assert found.columns[31] == "stagedencoder31"
    vectors = encoder.transform(images[:4])
    assert isinstance(vectors, np.ndarray)
    assert_array_equal(found.to_numpy(), vectors)
    for copied in (clone(framed), pickle.loads(pickle.dumps(framed)), framed.set_output(transform=None)):
        assert isinstance(copied.transform(images[:2]), pd.DataFrame)
    with sklearn.config_context(transform_output="polars"):
        assert isinstance(encoder.transform(images[:2]), pl.DataFrame)
    with pytest.raises(InvalidInputError, match="transform"):
        encoder.set_output(transform="arrow")


def test_what_is_set_in_a_clone_stays_there(encoder, images):
    """It shares the weights; the encoder it was made of goes on as it was."""
    copied = clone(encoder).set_params(stage="pixel", pooling="max")
    assert (copied.stage, copied.pooling, copied.dim) == ("pixel", "max", 3072)
    assert (encoder.stage, encoder.pooling) == ("layer1", "mean")
    assert copied._tower is encoder._tower
    assert copied.set_params(stage="layer1").fingerprint == stopped_at(encoder, "layer1", "max").fingerprint
    assert copied.set_params(image_size=32).get_params()["image_size"] == 32
    assert copied.encode(images[:1]).shape == (1, 32)
    before = copied.get_params()
    for wrong, told in (({"stage": "layer9"}, "layer9"), ({"stages": "mid"}, "has no argument 'stages'")):
        with pytest.raises(InvalidInputError, match=told):
            copied.set_params(**wrong)
    with pytest.raises(InvalidInputError, match="pooling"):
        copied.set_params(pooling=None)
    assert copied.get_params() == before
    assert FunctionEncoder(sizes, name="sizes", version=1).set_params(version=2).fingerprint["version"] == 2


def test_a_fitted_classifier_refuses_an_encoder_that_was_changed(encoder, images, labels):
    classifier = RetrievalClassifier(clone(encoder)).fit(images, labels)
    classifier.set_params(encoder__stage="pixel")
    with pytest.raises(FingerprintMismatchError, match="stage"):
        classifier.predict(images[:1])
    assert classifier.set_params(encoder__stage="layer1").predict(images[:1]).tolist() == labels[:1]


def test_pipelines_are_searched_over_stages_and_poolings(encoder, images, labels):
    """Scores are those of pipelines made one by one, in this process or in others."""
    pipeline = make_pipeline(encoder, LogisticRegression(C=0.1))
    pipeline.fit(images, labels)
    by_hand = LogisticRegression(C=0.1).fit(encoder.encode(images), labels)
    assert_array_equal(pipeline.predict_proba(images), by_hand.predict_proba(encoder.encode(images)))
    assert pipeline[:-1].get_feature_names_out()[0] == "stagedencoder0"
    grid = {"stagedencoder__stage": ["pixel", "layer1"], "stagedencoder__pooling": ["mean", "max"]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(images, labels)
    for params, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        view = stopped_at(encoder, params["stagedencoder__stage"], params["stagedencoder__pooling"])
        chain = make_pipeline(view, LogisticRegression(C=0.1))
        alone = GridSearchCV(chain, {"logisticregression__C": [0.1]}, cv=3).fit(images, labels)
        assert alone.best_score_ == pytest.approx(score)
    assert search.best_estimator_["stagedencoder"]._tower is encoder._tower
    assert encoder.stage == "layer1"
    stages = {"encoder__stage": ["pixel", "layer1"]}
    votes = GridSearchCV(RetrievalClassifier(encoder, store="memory"), stages, cv=3, error_score="raise")
    assert votes.fit(images, labels).best_score_ > 0.8


def test_scikit_learn_is_not_loaded(class_folder):
    """Nor for `transform`, unless it is there already."""
    program = (
        "import sys\n"
        "from clipretrieval import StagedEncoder\n"
        "encoder = StagedEncoder(stage='pixel')\n"
        f"assert encoder.fit({str(class_folder)!r}).transform({str(class_folder)!r}).shape == (34, 3072)\n"
        "encoder.set_params(batch_size=2).get_feature_names_out()\n"
        "sys.exit(sorted({'sklearn', 'scipy', 'torch', 'pandas'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
