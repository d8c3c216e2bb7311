"""A function as an encoder: its vectors as they are, its faults by the image's name."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from clipretrieval import (
    ClipRetrievalWarning,
    DimensionMismatchError,
    FingerprintMismatchError,
    FunctionEncoder,
    ImageDecodeError,
    InvalidInputError,
    RetrievalClassifier,
    compare,
)


def mean_color(images):
    """Three numbers an image; at the top of a module, so that it can be pickled."""
    return [np.asarray(image).mean(axis=(0, 1)) / 255 for image in images]


def encoder_of(function=mean_color, **options):
    return FunctionEncoder(function, **{"name": "mean-color", "version": 1, **options})


def square(number):
    return Image.new("RGB", (6, 5), (number, 2 * number, 255 - number))


def test_vectors_are_the_functions_own(class_folder):
    """Batches are no larger than asked for, in the order of the source, and progress is told of each."""
    calls, told = [], []

    def function(images):
        calls.append([image.getpixel((0, 0))[0] for image in images])
        return torch.from_numpy(np.stack(mean_color(images))).to(torch.float64)

    encoder = encoder_of(function, batch_size=3)
    vectors = encoder.encode([square(number) for number in range(8)], progress=lambda *at: told.append(at))
    assert calls == [[128], [0, 1, 2], [3, 4, 5], [6, 7]]  # a gray image tells the dimension
    assert told[-1] == (8, 8)
    assert vectors.dtype == np.float32
    assert_array_equal(vectors, np.float32([mean_color([square(number)])[0] for number in range(8)]))
    assert encoder.fingerprint == {"encoder": "function", "name": "mean-color", "version": 1, "dim": 3}
    folder = class_folder / "test" / "flower"
    paths = sorted(folder.iterdir())
    assert_array_equal(encoder.encode(folder), encoder.encode([Image.open(path) for path in paths]))


@pytest.mark.parametrize("wrong", ["raises", "nan"])
def test_an_image_without_a_vector_is_named_or_skipped(tmp_path, wrong):
    """Beside one that cannot be decoded; the others of its batch keep their vectors."""

    def function(images):
        found = np.stack(mean_color(images))
        dark = np.array([image.getpixel((0, 0))[0] == 3 for image in images])
        if wrong == "raises" and dark.any():
            raise ValueError("it is\ntoo dark")
        found[dark] = np.nan
        return found

    for number in range(6):
        square(number).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"no image")
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    encoder = encoder_of(function)
    with pytest.warns(ClipRetrievalWarning, match="2 of 6 images could not be encoded"):
        vectors = encoder.encode(paths, on_error="skip")
    assert np.flatnonzero(np.isnan(vectors).any(axis=1)).tolist() == [3, 4]
    assert_array_equal(vectors[5], np.float32(mean_color([square(5)])[0]))
    told = (
        "raised ValueError: it is too dark for"
        if wrong == "raises"
        else "returned NaN or infinite values for"
    )
    with pytest.raises(
        InvalidInputError, match=f"the function 'mean-color' {told} image '.*3.png'"
    ) as caught:
        encoder.encode([*paths[:4], paths[5]])
    assert isinstance(caught.value.__cause__, ValueError) == (wrong == "raises")
    with pytest.raises(ImageDecodeError, match=r"4\.png"):
        encoder.encode(paths[4:])
    classifier = RetrievalClassifier(encoder).fit(paths, list("ababab"), on_error="skip")
    assert [(image.index, image.source) for image in classifier.skipped_] == [(3, paths[3]), (4, paths[4])]
    assert classifier.store_.count() == 4
    started = RetrievalClassifier(encoder, store="memory")
    with pytest.raises(InvalidInputError, match="too dark" if wrong == "raises" else "NaN"):
        started.fit([paths[place] for place in (0, 1, 2, 3, 5)], list("ababa"))


def test_a_batch_that_fails_as_a_whole_is_told_apart():
    """Memory runs out for many images and for none alone: nothing is skipped for that."""

    def function(images):
        if len(images) > 2:
            raise MemoryError("too many")
        return mean_color(images)

    images = [square(number) for number in range(5)]
    with pytest.raises(InvalidInputError, match=r"MemoryError: too many for 5 images together.* batch_size"):
        encoder_of(function).encode(images, on_error="skip")
    assert encoder_of(function, batch_size=2).encode(images).shape == (5, 3)


@pytest.mark.parametrize(
    ("returned", "error", "told"),
    [
        (lambda images: np.zeros((len(images) + 1, 3)), InvalidInputError, r"shape \(3, 3\) for 2 images"),
        (lambda images: np.zeros(3), InvalidInputError, r"returned shape \(3,\)"),
        (lambda images: np.zeros((len(images), 2)), DimensionMismatchError, "2 dimensions.*dim is 3"),
        (lambda images: [[0.0] * 3, [0.0] * 2], InvalidInputError, "the rows differ in length"),
        (lambda images: np.full((len(images), 3), "x"), InvalidInputError, "expected real numbers"),
        (lambda images: None, InvalidInputError, "returned"),
    ],
)
def test_what_are_no_vectors_is_never_skipped(returned, error, told):
    with pytest.raises(error, match=told):
        encoder_of(returned, dim=3).encode([square(1), square(2)], on_error="skip")


def test_a_dimension_that_changes_is_refused():
    sizes = iter([4, 4, 5])

    def function(images):
        return np.ones((len(images), next(sizes)))

    encoder = encoder_of(function, batch_size=2)
    with pytest.raises(DimensionMismatchError, match="5 dimensions, but the encoder's dim is 4"):
        encoder.encode([square(number) for number in range(4)])


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda images: images[1], "raised IndexError.*gray image.*pass dim="),
        (lambda images: [1.0, 2.0], r"returned shape \(2,\) for a list of one image"),
        (lambda images: np.zeros((1, 0)), r"returned shape \(1, 0\)"),
    ],
)
def test_a_dimension_that_cannot_be_found_is_asked_for(function, told):
    with pytest.raises(InvalidInputError, match=told):
        _ = encoder_of(function).dim
    assert encoder_of(function, dim=7).dim == 7


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"function": 3}, "function must be a function of a list of PIL images"),
        ({"function": dict}, "function must be a function"),
        ({"name": ""}, "name"),
        ({"version": 1.5}, r"version must be a str, or a whole number; got 1\.5"),
        ({"version": True}, "version must be"),
        ({"dim": 0}, "dim must be a whole number"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"max_pixels": 0}, "max_pixels must be"),
        ({"encode_text": "text"}, "encode_text must be a function of a list of str"),
    ],
)
def test_wrong_arguments_are_refused(options, told):
    with pytest.raises(InvalidInputError, match=told):
        encoder_of(**options)
    encoder = encoder_of()
    with pytest.raises(InvalidInputError, match="has one stage, 'mean-color'"):
        encoder.stream([square(1)], stages=("mid",))
    with pytest.raises(InvalidInputError, match="on_error"):
        encoder.stream([square(1)], on_error="ignore")
    with pytest.raises(AttributeError, match="never changes"):
        encoder.version = 2
    with pytest.raises(InvalidInputError, match="there are no images"):
        encoder.encode([])


def test_copies_and_pickles_have_the_function():
    """One that cannot be pickled is Python's own error; it is in nobody's way else."""
    encoder = encoder_of(version="2026-01", batch_size=5)
    for copied in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        assert copied.fingerprint == encoder.fingerprint
        assert copied.batch_size == 5
        assert_array_equal(copied.encode([square(9)]), encoder.encode([square(9)]))
    assert repr(encoder) == "FunctionEncoder(name='mean-color', version='2026-01', dim=3)"
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(encoder_of(lambda images: mean_color(images)))


def test_threads_take_turns():
    """A function need not be made for threads."""
    inside, most = [], []

    def function(images):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()
        return mean_color(images)

    encoder = encoder_of(function, dim=3, batch_size=2)
    images = [square(number) for number in range(10)]
    found = []
    threads = [threading.Thread(target=lambda: found.append(encoder.encode(images))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    for vectors in found:
        assert_array_equal(vectors, np.float32(mean_color(images)))


def test_a_classifier_resumes_and_is_loaded_with_the_function_alone(class_folder, tmp_path):
    """What is stored is not computed again, and another version is refused."""
    counted = []

    def function(images):
        counted.append(len(images))
        return mean_color(images)

    encoder = encoder_of(function, dim=3)
    classifier = RetrievalClassifier(encoder).fit(class_folder / "train")
    assert sum(counted) == 24
    classifier.fit(class_folder / "train", resume=True)
    assert sum(counted) == 24
    report = classifier.evaluate(class_folder / "test")
    assert report.setting["stage"] == "mean-color"
    classifier.save(tmp_path / "kept")
    loaded = RetrievalClassifier.load(tmp_path / "kept", encoder)
    assert_array_equal(loaded.predict(class_folder / "test"), report.y_pred)
    with pytest.raises(InvalidInputError, match=r"an encoder of your own \(FunctionEncoder\); pass it again"):
        RetrievalClassifier.load(tmp_path / "kept")
    with pytest.raises(FingerprintMismatchError, match="version: stored 1, given 2"):
        RetrievalClassifier.load(tmp_path / "kept", encoder_of(function, dim=3, version=2))
    program = (
        "import sys, numpy as np\n"
        "from clipretrieval import FunctionEncoder, RetrievalClassifier\n"
        "def f(images): return [np.asarray(image).mean(axis=(0, 1)) / 255 for image in images]\n"
        "encoder = FunctionEncoder(f, name='mean-color', version=1)\n"
        "print(*RetrievalClassifier.load(sys.argv[1], encoder).predict(sys.argv[2]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    asked = [sys.executable, "-c", program, str(tmp_path / "kept"), str(class_folder / "test")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == report.y_pred.tolist()


def test_it_is_compared_as_one_stage(class_folder):
    """With the accuracy of a classifier of its own; what needs CLIP is refused."""
    train, test, encoder = class_folder / "train", class_folder / "test", encoder_of()
    quick = {"encoder": encoder, "timed_images": 4, "single_images": 0}
    report = compare(train, test, k=(1, 3), **quick)
    assert [row.name for row in report.rows] == ["mean-color k=1", "mean-color k=3"]
    alone = RetrievalClassifier(encoder, k=3).fit(train).evaluate(test)
    assert report["mean-color k=3"].report.y_pred.tolist() == alone.y_pred.tolist()
    assert report.rows[0].multiply_adds is None
    assert report.open_clip is None
    for wrong, told in (
        ({"stages": ["mid"]}, "has one stage, 'mean-color'; got 'mid'"),
        ({"zero_shot": True}, "zero_shot is CLIP's own answer, and the encoder is a FunctionEncoder"),
        ({"cascades": [("pixel", "mid")]}, "StagedEncoder"),
        ({"encoder": mean_color}, r"FunctionEncoder\(encoder\.encode, name=…, version=…\)"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            compare(train, test, **{**quick, **wrong})
