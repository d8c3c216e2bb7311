"""Long work tells how far it is, and passes over images that cannot be decoded, in one way everywhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clipretrieval import (
    ClipRetrievalWarning,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    ZeroShotClassifier,
    compare,
)
from clipretrieval._util.progress import open_progress, progress_bar
from clipretrieval.retrieval.retriever import NoImagesError

TONES = [np.full((8, 8, 3), tone, dtype=np.uint8) for tone in (0, 90, 200)]
LABELS = ["dark", "grey", "bright"]
BROKEN = b"no picture"


@pytest.fixture(scope="module")
def encoder(tiny_model: str) -> StagedEncoder:
    return StagedEncoder(tiny_model, stage="pixel")


@pytest.fixture
def classifier(encoder: StagedEncoder) -> RetrievalClassifier:
    return RetrievalClassifier(encoder, "memory").fit(TONES, LABELS)


@pytest.fixture(scope="module")
def zero_shot(tiny_model: str) -> ZeroShotClassifier:
    return ZeroShotClassifier(StagedEncoder(tiny_model, precision="fp32"), ["dark", "grey", "bright"])


Call = Callable[[Any, Any], Any]
CALLS: dict[str, Call] = {
    "fit": lambda c, p: c.fit(TONES, LABELS, overwrite=True, progress=p),
    "partial_fit": lambda c, p: c.partial_fit(TONES, LABELS, progress=p),
    "predict": lambda c, p: c.predict(TONES, progress=p),
    "predict_proba": lambda c, p: c.predict_proba(TONES, progress=p),
    "kneighbors": lambda c, p: c.kneighbors(TONES, progress=p),
    "explain": lambda c, p: c.explain(TONES, progress=p),
    "sweep": lambda c, p: c.sweep(TONES, LABELS, k=1, validation="all", allow_known=True, progress=p),
    "encode": lambda c, p: c.encoder.encode(TONES, progress=p),
    "encode_stages": lambda c, p: c.encoder.encode_stages(TONES, ["pixel"], progress=p),
}


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Where there is no terminal, half a minute after the last one; none of what is done before."""
    clock = [100.0]
    monkeypatch.setattr("clipretrieval._util.progress.time.monotonic", lambda: clock[0])
    with progress_bar("indexing") as tell:
        for seconds, done in ((29, 5), (31, 1200), (45, 1300), (61, 1400)):
            clock[0] = 100.0 + seconds
            tell(done, None if done == 1400 else 5000)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "indexing: 1,200 of 5,000 images, 31 s\nindexing: 1,400 images, 61 s\n")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("progress", [True, False, None, np.True_])
def test_all_long_work_takes_a_bar_or_none(
    classifier: RetrievalClassifier, call: Call, progress: Any
) -> None:
    """True, False and None are taken everywhere, and nothing is shown where nobody looks."""
    call(classifier, progress)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_all_long_work_tells_the_images_done(classifier: RetrievalClassifier, call: Call) -> None:
    """A function is called with the images done and their total, from none to all."""
    told_of: list[tuple[int, int | None]] = []
    call(classifier, lambda *done: told_of.append(done))
    assert told_of[0] == (0, 3)
    assert told_of[-1] == (3, 3)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_anything_else_is_no_progress(classifier: RetrievalClassifier, call: Call) -> None:
    """What can be neither called nor is True, False or None is refused."""
    with pytest.raises(InvalidInputError, match="progress must be a function"):
        call(classifier, "yes")


@pytest.mark.filterwarnings("ignore:3 of the 3 images are stored")
def test_evaluations_take_a_bar(classifier: RetrievalClassifier, zero_shot: ZeroShotClassifier) -> None:
    """Evaluations, scores and comparisons take progress=True."""
    assert classifier.evaluate(TONES, LABELS, progress=True).accuracy == 1.0
    assert classifier.score(TONES, LABELS, progress=True) == 1.0
    assert zero_shot.evaluate(TONES, LABELS, progress=True).n_test == 3
    assert zero_shot.predict(TONES, progress=True).shape == (3,)
    report = compare(
        *(TONES, TONES),
        encoder=classifier.encoder,
        stages=["pixel"],
        stores=["memory"],
        train_labels=LABELS,
        test_labels=LABELS,
        timed_images=1,
        single_images=0,
        open_clip=False,
        progress=True,
    )
    assert report.rows[0].report.accuracy == 1.0


def test_answers_keep_the_place_of_their_images(classifier: RetrievalClassifier) -> None:
    """Where an image is skipped its answer is empty, and the others stay where they belong."""
    asked = [BROKEN, TONES[2], BROKEN, TONES[0], BROKEN]
    with pytest.warns(ClipRetrievalWarning, match="3 of 5 images were skipped") as caught:
        labels = classifier.predict(asked, on_error="skip")
    assert labels.tolist() == [None, "bright", None, "dark", None]
    assert caught[0].filename == __file__
    with pytest.warns(ClipRetrievalWarning, match="3 of 5"):
        shares = classifier.predict_proba(asked, on_error="skip")
    assert shares.shape == (5, 3)
    assert np.isnan(shares).all(axis=1).tolist() == [True, False, True, False, True]
    with pytest.warns(ClipRetrievalWarning, match="3 of 5"):
        near = classifier.kneighbors(asked, 2, on_error="skip")
    assert near.valid.all(axis=1).tolist() == [False, True, False, True, False]
    assert near.labels[:, 0].tolist() == ["", "bright", "", "dark", ""]
    assert near.ids[0].tolist() == ["", ""]
    with pytest.warns(ClipRetrievalWarning, match="3 of 5"):
        told_of = classifier.explain(asked, on_error="skip")
    assert [None if item is None else item.answer for item in told_of] == labels.tolist()


def test_vectors_keep_the_place_of_their_pictures(encoder: StagedEncoder) -> None:
    """Where a picture is skipped its vector is NaN."""
    with pytest.warns(ClipRetrievalWarning, match="1 of 3 images could not be encoded"):
        vectors = encoder.encode([TONES[0], BROKEN, TONES[2]], on_error="skip")
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, False]
    np.testing.assert_array_equal(vectors[[0, 2]], encoder.encode([TONES[0], TONES[2]]))


def test_zero_shot_answers_keep_their_places(zero_shot: ZeroShotClassifier) -> None:
    """CLIP's own answers are placed in the same way."""
    whole = zero_shot.predict(TONES)
    with pytest.warns(ClipRetrievalWarning, match="1 of 4 images"):
        labels = zero_shot.predict([TONES[0], BROKEN, *TONES[1:]], on_error="skip")
    assert labels.tolist() == [whole[0], None, *whole[1:]]
    with pytest.warns(ClipRetrievalWarning, match="1 of 4 images"):
        shares = zero_shot.predict_proba([TONES[0], BROKEN, *TONES[1:]], on_error="skip")
    assert np.isnan(shares[1]).all()


def test_labels_under_skip_are_of_one_type(classifier: RetrievalClassifier) -> None:
    """Answers are objects under on_error="skip", whether or not one was skipped."""
    assert classifier.predict(TONES, on_error="skip").dtype == object
    assert classifier.predict(TONES).dtype.kind == "U"


def test_numbers_are_padded_as_neighbours_are(encoder: StagedEncoder) -> None:
    """A skipped image's neighbours have the label -1 where labels are numbers."""
    classifier = RetrievalClassifier(encoder, "memory").fit(TONES, [1, 2, 3])
    with pytest.warns(ClipRetrievalWarning, match="1 of 2"):
        near = classifier.kneighbors([BROKEN, TONES[1]], on_error="skip")
    assert near.labels.tolist() == [[-1], [2]]


def test_nothing_that_can_be_decoded_is_no_question(classifier: RetrievalClassifier) -> None:
    """Where every image is skipped, there is no answer at all."""
    with pytest.raises(
        NoImagesError, match="none of the 1 images to classify could be used; the first: cannot decode"
    ):
        classifier.predict([BROKEN], on_error="skip")


@pytest.mark.filterwarnings("ignore:2 of the 2 images are stored")
def test_weights_are_those_of_all_images(classifier: RetrievalClassifier) -> None:
    """A score's weights are one an image, the skipped included."""
    asked, truth = [TONES[0], BROKEN, TONES[1]], ["dark", "dark", "bright"]
    weights = [3.0, 50.0, 1.0]
    assert classifier.score(asked, truth, weights, on_error="skip") == 0.75
    with pytest.raises(InvalidInputError, match="sample_weight must be 3 numbers"):
        classifier.score(asked, truth, [1.0, 1.0], on_error="skip")


def test_a_bar_is_shown_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook without ipywidgets a warning says what a bar needs."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.warns(ClipRetrievalWarning, match="pip install ipywidgets"),
        progress_bar("fitting") as advance,
    ):
        advance(1, 2)


def test_a_bar_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the bar says what is done, and how many of how many."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with open_progress(True, "fitting") as advance:
        advance(3, 7)
    assert "fitting" in terminal.getvalue()
    assert "3/7" in terminal.getvalue()
