"""The command and classifiers that it cannot give images to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipretrieval import InvalidInputError, RetrievalClassifier

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """A saved classifier of vectors."""
    made = RetrievalClassifier(store="memory").fit([[0.0, 1.0], [1.0, 0.0]], ["temple", "flower"])
    made.save(tmp_path / "vectors")
    return tmp_path / "vectors"


class Own:
    """An encoder of a user's."""

    dim = 3
    fingerprint = {"name": "own"}

    def encode(self, images: Any) -> Any:
        return np.stack([np.asarray(image, dtype=np.float32).mean((0, 1)) for image in images])


def calls(kept: Path, images: Path) -> list[tuple[Any, ...]]:
    return [
        ("classify", kept, images / "test"),
        ("evaluate", "--classifier", kept, "--test", images / "test"),
        ("sweep", "--classifier", kept, "--validation", images / "test"),
        ("index", images / "train", kept, "--add"),
    ]


def test_classifier_of_vectors_is_refused_in_one_line(
    command: Command, vectors: Path, class_folder: Path
) -> None:
    """Whatever would give it images ends with one line and status 2; the rest takes it."""
    for call in calls(vectors, class_folder):
        status, out, err = command(*call)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: the classifier in {str(vectors)!r} was fitted on vectors and has no")
        assert len(err.splitlines()) == 1
    status, out, _ = command("info", vectors)
    assert (status, "none: it classifies vectors" in out) == (0, True)
    status, out, _ = command("forget", vectors, "--label", "temple")
    assert (status, out[:18]) == (0, "1 image forgotten,")


def test_other_parts_that_must_be_given_are_named_in_one_line(
    command: Command, tmp_path: Path, class_folder: Path
) -> None:
    """An encoder or a store of the user's own cannot be given to the command, which says so."""
    made = RetrievalClassifier(Own(), "memory").fit(class_folder / "train")
    made.save(tmp_path / "own")
    for call in calls(tmp_path / "own", class_folder):
        status, _, err = command(*call)
        assert (status, len(err.splitlines())) == (2, 1)
        assert "saved with an encoder of your own (Own)" in err


@pytest.mark.parametrize("kind", ["path", "bytes", "image", "iterator", "list"])
def test_images_without_an_encoder_are_refused(class_folder: Path, kind: str) -> None:
    """Every question and every fit says that vectors are wanted, and how images are taken."""
    file = class_folder / "test" / "temple" / "00.jpg"
    made = RetrievalClassifier(store="memory").fit([[0.0, 1.0], [1.0, 0.0]], [0, 1])
    for call in (
        made.predict,
        made.explain,
        made.kneighbors,
        lambda X: made.evaluate(X, [0]),
        lambda X: made.fit(X, [0]),
        lambda X: made.partial_fit(X, [0]),
    ):
        given: Any = {
            "path": file,
            "bytes": file.read_bytes(),
            "image": Image.new("RGB", (2, 2)),
            "iterator": iter([file]),
            "list": [Image.new("RGB", (2, 2))],
        }[kind]
        with pytest.raises(InvalidInputError, match="this classifier has no encoder, so it takes vectors"):
            call(given)
