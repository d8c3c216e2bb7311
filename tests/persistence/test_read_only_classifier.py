"""A saved classifier that is only asked answers as the estimator that is loaded from the same folder."""

from __future__ import annotations

import pytest

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.errors import FingerprintMismatchError, InvalidInputError, NotFittedError
from clipretrieval.explanation import explain_stream
from clipretrieval.heads import Discriminant
from clipretrieval.persistence.read_only_classifier import ReadOnlyClassifier


@pytest.fixture
def saved(class_folder, tiny_model, tmp_path):
    """Where a classifier of short vectors and its store lie, filled with the training images."""
    encoder = StagedEncoder(tiny_model, stage="stem", precision="fp32")
    options = {"path": str(tmp_path / "kept" / "vectors")}
    made = RetrievalClassifier(encoder, "faiss", store_options=options)
    made.fit(class_folder / "train").save(tmp_path / "kept")
    made.store_.close()
    return tmp_path / "kept"


@pytest.mark.usefixtures("few_features")
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"head": "discriminant"},
        {"head": Discriminant(0.5), "priors": "empirical"},
        {"head": "fused", "priors": "equal"},
    ],
)
def test_it_answers_as_the_estimator(saved, class_folder, changed):
    """Neighbors, shares and parts are the same, whatever head is asked for."""
    asked, estimator = ReadOnlyClassifier.load(saved), RetrievalClassifier.load(saved)
    asked.set_params(**changed)
    estimator.set_params(**changed)
    found = list(explain_stream(asked, class_folder / "test"))
    assert found == list(explain_stream(estimator, class_folder / "test"))
    assert [each.answer for each in found] == estimator.predict(class_folder / "test").tolist()
    assert asked.classes_.tolist() == estimator.classes_.tolist()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head": "what"}, "unknown head 'what'"),
        ({"priors": [1, 2, "x"]}, "priors must be"),
        ({"head": "discriminant", "priors": [1.0] * 99}, "there are 99 priors"),
        ({"text_weight": -1}, "text_weight"),
        ({"text_weight": 1.0}, "text_weight needs"),
    ],
)
def test_what_cannot_answer_is_refused_as_by_the_estimator(saved, class_folder, changed, message):
    asked, estimator = ReadOnlyClassifier.load(saved), RetrievalClassifier.load(saved)
    asked.set_params(**changed)
    estimator.set_params(**changed)
    with pytest.raises(InvalidInputError, match=message) as expected:
        estimator.predict(class_folder / "test")
    with pytest.raises(InvalidInputError) as found:
        list(explain_stream(asked, class_folder / "test"))
    assert str(found.value) == str(expected.value)


def test_it_sees_what_others_write(saved, class_folder):
    """Images and classes that come after it was opened are found, and a store that was emptied is refused."""
    asked = ReadOnlyClassifier.load(saved)
    writer = RetrievalClassifier.load(saved)
    image = next((class_folder / "test").rglob("*.png"))
    writer.partial_fit([image], ["new"])
    writer.store_.flush()
    (found,) = explain_stream(asked, [image])
    assert (found.answer, found.distance) == ("new", 0)
    for label in writer.classes_.tolist():
        writer.forget(label=label)
    writer.store_.flush()
    with pytest.raises(NotFittedError, match="holds no vectors any more"):
        list(explain_stream(asked, [image]))
    writer.store_.close()


def test_a_store_of_another_encoder_is_refused(saved, class_folder):
    asked = ReadOnlyClassifier.load(saved)
    manifest = dict(asked.store_.read_manifest())
    manifest["encoder"] = {**manifest["encoder"], "stage": "mid"}
    asked.store_.write_manifest(manifest)
    with pytest.raises(FingerprintMismatchError):
        list(explain_stream(asked, class_folder / "test"))
    asked.store_.close()
