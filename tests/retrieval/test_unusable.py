"""Images whose vectors can be neither stored nor searched: named, or skipped where that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipretrieval import (
    ClipRetrievalWarning,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    ZeroShotClassifier,
    compare,
)
from clipretrieval.explanation import explain_stream
from clipretrieval.images import SkippedImage
from clipretrieval.retrieval.retriever import NoImagesError

COUNT, BLACK = 2100, 2050


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red and a green class of six images each, one of them black, and a file that is no image."""
    root = tmp_path_factory.mktemp("split")
    rng = np.random.default_rng(0)
    for place, name in enumerate(("green", "red")):
        (root / name).mkdir()
        for number in range(6):
            pixels = rng.integers(1, 60, (8, 8, 3), dtype=np.uint8)
            pixels[..., 1 - place] += 150
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    Image.new("RGB", (8, 8)).save(root / "red" / "3.png")
    return root


@pytest.fixture(scope="module")
def encoder(tiny_model: str) -> StagedEncoder:
    return StagedEncoder(tiny_model, stage="pixel", precision="fp32")


@pytest.fixture(scope="module")
def classifier(encoder: StagedEncoder, split: Path) -> RetrievalClassifier:
    return RetrievalClassifier(encoder, "memory", metric="cosine").fit(split, on_error="skip")


@pytest.mark.parametrize("store", ["memory", "faiss", "chroma"])
def test_black_image_is_named_by_its_path(encoder: StagedEncoder, split: Path, store: str) -> None:
    """Without a direction under the cosine metric, an image stops a fit by its name and keeps what came."""
    made = RetrievalClassifier(encoder, store, metric="cosine")
    with pytest.raises(InvalidInputError, match=r"image '.*red.3\.png' cannot be used: .* on_error='skip'"):
        made.fit(split)


def test_black_image_far_in_is_named_by_its_place() -> None:
    """The place is that in what was given, in whatever batch it lies."""
    pictures = np.full((COUNT, 2, 2, 3), 9, np.uint8)
    pictures[:, 0, 0, :2] = np.arange(COUNT)[:, None] // [1, 200] % 200
    pictures[BLACK] = 0
    made = RetrievalClassifier(StagedEncoder(stage="pixel"), "memory", metric="cosine")
    with pytest.raises(InvalidInputError, match=f"image number {BLACK} "):
        made.fit(pictures, np.arange(COUNT) % 2)
    made.fit(pictures, np.arange(COUNT) % 2, on_error="skip")
    assert [(item.index, item.source) for item in made.skipped_] == [(BLACK, None)]
    assert made.store_.count() == COUNT - 1
    assert made.fit_report_.images == COUNT


def test_skipped_in_every_question(classifier: RetrievalClassifier, split: Path) -> None:
    """It has an empty answer wherever one that cannot be decoded has, and is listed where those are."""
    asked = [split / "red" / name for name in ("2.png", "3.png", "4.png")]
    assert [Path(str(item.source)).name for item in classifier.skipped_] == ["3.png"]
    assert classifier.store_.count() == 11
    with pytest.warns(ClipRetrievalWarning, match=r"1 of 3 images were skipped.*3\.png"):
        assert classifier.predict(asked, on_error="skip").tolist() == ["red", None, "red"]
    with pytest.warns(ClipRetrievalWarning, match="1 of 3 images were skipped"):
        shares = classifier.predict_proba(asked, on_error="skip")
    np.testing.assert_array_equal(shares, [[0, 1], [np.nan, np.nan], [0, 1]])
    with pytest.warns(ClipRetrievalWarning, match="1 of 3 images were skipped"):
        near = classifier.kneighbors(asked, on_error="skip")
    assert near.valid[:, 0].tolist() == [True, False, True]
    with pytest.warns(ClipRetrievalWarning, match="1 of 3 images were skipped"):
        told = classifier.explain(asked, on_error="skip")
    assert [each and each.answer for each in told] == ["red", None, "red"]
    with pytest.warns(ClipRetrievalWarning, match="2 of the 2 images are stored"):
        report = classifier.evaluate(asked, ["red"] * 3, on_error="skip")
    assert (report.n_test, report.positions.tolist()) == (2, [0, 2])
    assert [item.index for item in report.skipped] == [1]
    swept = classifier.sweep(asked, ["red"] * 3, k=1, validation="all", allow_known=True, on_error="skip")
    assert [item.index for item in swept.skipped] == [1]
    with pytest.raises(NoImagesError, match=r"none of the 1 images to classify could be used.*3\.png"):
        classifier.predict([asked[1]], on_error="skip")
    for question in (classifier.predict, classifier.predict_proba, classifier.kneighbors, classifier.explain):
        with pytest.raises(InvalidInputError, match=r"3\.png' cannot be used"):
            question(asked)


def test_skipped_are_listed_in_the_order_of_the_source(classifier: RetrievalClassifier, split: Path) -> None:
    """Images that cannot be decoded and images without a direction come in one list, by their places."""
    given = [split / "red" / "3.png", b"no image", split / "red" / "1.png", split / "red" / "3.png", b""]
    skipped = [SkippedImage(99, None, "of an earlier call")]
    answers = [each.answer for each in explain_stream(classifier, given, None, "skip", skipped)]
    assert answers == ["red"]
    assert [item.index for item in skipped] == [99, 0, 1, 3, 4]


@pytest.mark.parametrize("params", [{"metric": "ip"}, {"metric": "l2"}, {"normalize": True}])
def test_black_image_is_an_image_where_no_direction_is_needed(
    encoder: StagedEncoder, split: Path, params: dict[str, Any]
) -> None:
    """Other metrics take a vector of zeros, also beside vectors of length one."""
    made = RetrievalClassifier(encoder, "memory", **params).fit(split)
    assert made.store_.count() == 12
    if params != {"metric": "ip"}:
        assert made.kneighbors(split / "red" / "3.png").distances.tolist() == [[0.0]]


def test_rows_are_named_before_anything_is_stored() -> None:
    """A row of zeros among vectors is named by its number, and leaves the classifier as it was."""
    rows = np.random.default_rng(0).normal(size=(COUNT, 3))
    rows[BLACK] = 0
    labels = np.arange(COUNT) % 2
    made = RetrievalClassifier(store="memory", metric="cosine").fit(rows[:2], labels[:2])
    for learn in (made.partial_fit, lambda X, y: made.fit(X, y, overwrite=True)):
        with pytest.raises(InvalidInputError, match=f"row {BLACK} cannot be used"):
            learn(rows, labels)
        assert made.store_.count() == 2
    made.partial_fit(rows, labels, on_error="skip")
    assert [(item.index, item.source) for item in made.skipped_] == [(BLACK, None)]
    assert made.store_.count() == COUNT - 1
    with pytest.warns(ClipRetrievalWarning, match="1 of 3 images were skipped.*row 1 cannot"):
        found = made.predict(rows[BLACK - 1 : BLACK + 2], on_error="skip")
    assert found.tolist() == [labels[BLACK - 1], None, labels[BLACK + 1]]


class Means:
    """An encoder of a user's, which cannot do anything with a black image."""

    dim = 3
    fingerprint: Mapping[str, Any] = {"name": "means"}

    def __init__(self, of_black: float) -> None:
        self.of_black = of_black

    def encode(self, images: Any) -> Any:
        means = np.stack([np.asarray(image, dtype=np.float32).mean((0, 1)) for image in images])
        means[~means.any(axis=1)] = self.of_black
        return means


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_encoder_without_an_answer_for_one_image(split: Path, value: float) -> None:
    """NaN, infinity or zeros from a user's encoder are told with the image, and skipped like it."""
    made = RetrievalClassifier(Means(value), "memory", metric="cosine")
    with pytest.raises(InvalidInputError, match=r"red.3\.png'"):
        made.fit(split)
    made.fit(split, on_error="skip")
    assert [Path(str(item.source)).name for item in made.skipped_] == ["3.png"]
    if value:
        assert "Means.encode returned NaN or infinite values" in made.skipped_[0].reason
    with pytest.warns(ClipRetrievalWarning, match="1 of 2"):
        assert made.predict([split / "red/3.png", split / "red/1.png"], on_error="skip").tolist() == [
            None,
            "red",
        ]


def test_what_came_before_is_stored(encoder: StagedEncoder, split: Path) -> None:
    """A fit that a black image stops has kept the images before it, and goes on behind it."""
    from clipretrieval.stores import MemoryStore

    store = MemoryStore("cosine")
    made = RetrievalClassifier(encoder, store, metric="cosine")
    with pytest.raises(InvalidInputError, match=r"3\.png"):
        made.fit(split)
    assert store.count() == 9
    made.fit(split, resume=True, on_error="skip")
    assert (made.fit_report_.new, made.fit_report_.already_there) == (2, 9)


@pytest.mark.filterwarnings("ignore:11 of the 11 images are stored")
def test_comparison_leaves_it_out_at_every_stage(tiny_model: str, split: Path) -> None:
    """An image that is black at `pixel` only is named with the stage, and skipped on every side alike."""
    encoder = StagedEncoder(tiny_model, precision="fp32")
    asked: dict[str, Any] = {
        "encoder": encoder,
        "stages": ("pixel", "mid"),
        "metric": "cosine",
        "stores": ("memory",),
        "timed_images": 12,
        "single_images": 0,
        "open_clip": False,
    }
    with pytest.raises(InvalidInputError, match=r"3\.png' cannot be used.*at the stage 'pixel'"):
        compare(split, split, **asked)
    report = compare(split, split, **asked, on_error="skip")
    assert (report.n_train, report.n_test, report.timed_images) == (11, 11, 11)
    assert [Path(str(item.source)).name for item in report.skipped] == ["3.png", "3.png"]


def test_zero_shot_answers_nothing_for_a_vector_of_zeros(
    tiny_model: str, split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the image tower gives zeros no text is nearer than another, so there is no answer."""
    encoder = StagedEncoder(tiny_model, precision="fp32")
    zero_shot = ZeroShotClassifier(encoder, ["green", "red"])
    run = type(encoder._tower.engine(4)).run_each

    def zeroed(self: Any, squares: Any, parts: Any) -> Any:
        found = run(self, squares, parts)
        for given, made in zip(squares, found, strict=True):
            for vectors in made.values():
                vectors[~given.any(axis=(1, 2, 3))] = 0
        return found

    monkeypatch.setattr(type(encoder._tower.engine(4)), "run_each", zeroed)
    given = [split / "red" / "3.png", split / "red" / "1.png"]
    with pytest.raises(InvalidInputError, match=r"3\.png' cannot be used.*the cosine with a text"):
        zero_shot.predict(given)
    with pytest.warns(ClipRetrievalWarning, match="1 of 2 images were skipped"):
        assert zero_shot.predict(given, on_error="skip").tolist()[0] is None
    with pytest.raises(InvalidInputError, match="zero vector"):
        zero_shot.cosines(np.zeros((1, encoder.dim), np.float32))


def test_command_skips_and_names_it(command: Any, split: Path, tmp_path: Path) -> None:
    """Indexing, classifying and evaluating end with status 3 and the name of the black image."""
    options = ("--stage", "pixel", "--metric", "cosine")
    status, _, err = command("index", split, tmp_path / "kept", *options)
    assert status == 3
    assert "3.png" in err
    status, out, err = command("classify", tmp_path / "kept", split / "red")
    assert (status, len(out.splitlines())) == (3, 5)
    assert "skipped: image" in err
    status, out, err = command(
        "evaluate", "--classifier", tmp_path / "kept", "--test", split, "--on-error", "skip"
    )
    assert status == 3
    assert "1 images were skipped" in out
    status, _, err = command("evaluate", "--classifier", tmp_path / "kept", "--test", split)
    assert status == 2
    assert "3.png' cannot be used" in err
    assert "pass --on-error skip" in err
