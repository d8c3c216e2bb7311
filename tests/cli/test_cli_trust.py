"""``conformalize`` and ``calibrate`` a classifier of one stage; what other commands show of it then."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier


@pytest.fixture
def kept(command, class_folder, tmp_path):
    """A classifier by raw pixels."""
    status, _, err = command(
        *("index", class_folder / "train", tmp_path / "kept", "--stage", "pixel"),
        *("--k", "3", "--weights", "distance"),
    )
    assert (status, err) == (0, "")
    return tmp_path / "kept"


@pytest.fixture
def parts(class_folder, tmp_path):
    """Folders to conformalize and to calibrate with, 10 images, and a folder of something else."""
    for label in ("flower", "temple"):
        for path in sorted((class_folder / "test" / label).iterdir())[3:]:
            (tmp_path / "calibrate" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "calibrate" / label)
    shutil.copytree(class_folder / "test", tmp_path / "both")
    (tmp_path / "other").mkdir()
    for value in range(3):
        Image.new("RGB", (32, 32), (0, 0, 10 + value)).save(tmp_path / "other" / f"{value}.png")
    return tmp_path


def test_promises_are_kept_and_shown(command, kept, parts, class_folder):
    """Sets and the label for unknown images, in text and as JSON; as the estimator has them."""
    status, out, err = command(
        *("conformalize", parts / "both", kept, "--score", "aps"),
        *("--unknown", "none of these", "--max-turned-away", "0.1"),
    )
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "conformalized on 10 images by aps: prediction sets with a coverage of up to 90.91%",
        "label of unknown images: none of these, for at most 10.00% of the images of known classes",
        f"kept in {kept}",
    ]
    asked = [parts / "other", class_folder / "train" / "flower"]
    status, out, err = command("classify", kept, *asked, "--coverage", "0.9", "--top", "2")
    lines = [line.split("\t") for line in out.splitlines()]
    loaded = RetrievalClassifier.load(kept)
    paths = [line[0] for line in lines]
    labels, sets = loaded.predict_set(paths, 0.9)
    assert (status, err, len(lines)) == (0, "", 15)
    assert [line[1] for line in lines] == labels.tolist()
    shown = [f"{{{', '.join(loaded.classes_[row].tolist())}}}" for row in sets]
    assert [line[-1] for line in lines] == shown
    assert [line[1:3] for line in lines[:3]] == [["none of these", "0.0%"]] * 3
    status, out, _ = command("classify", kept, *asked, "--coverage", "0.9", "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert [each["label"] for each in told] == labels.tolist()
    assert [each["set"] for each in told] == [loaded.classes_[row].tolist() for row in sets]
    assert told[0]["top"][0]["label"] in ("flower", "temple")
    assert told[0]["share"] == 0
    loaded.store_.close()


def test_a_classifier_of_one_stage_is_calibrated(command, kept, parts):
    """Then images of the same folder cannot be promised by."""
    status, out, err = command("calibrate", parts / "calibrate", kept, "--json")
    told = json.loads(out)
    loaded = RetrievalClassifier.load(kept)
    assert status == 0
    assert err.startswith("warning: calibrated on 4 images, which are few")
    with pytest.warns(ClipRetrievalWarning, match="few"):
        loaded.calibration_.warn()
    assert told == {"path": str(kept), **loaded.calibration_.to_dict()}
    assert told["n"] == 4
    loaded.store_.close()
    out = command("calibrate", parts / "calibrate", kept, "--method", "isotonic")[1]
    assert out.startswith("calibrated on 4 images by isotonic: expected calibration error ")
    status, _, err = command("conformalize", parts / "both", kept)
    assert status == 2
    assert "4 of the images were given to calibrate, such as" in err


def test_info_shows_what_was_calibrated(command, kept, parts, class_folder):
    """How, on how many images that still count, and what is answered of unknown ones; as JSON too."""
    assert json.loads(command("info", kept, "--json")[1])["trust"] is None
    command("calibrate", parts / "calibrate", kept)
    shutil.rmtree(parts / "both")
    shutil.copytree(class_folder / "test", parts / "both")
    for path in (parts / "calibrate").rglob("*.*"):
        (parts / "both" / path.parent.name / path.name).unlink()
    command("conformalize", parts / "both", kept, "--unknown", "?", "--max-turned-away", "0.2")
    lines = command("info", kept)[1].splitlines()
    assert "calibrated  by temperature, on 4 images" in lines
    assert "sets        conformalized by lac, on 6 images: coverage of up to 85.71%" in lines
    assert "unknown     labeled ?, for at most 20.00% of the images of known classes" in lines
    told = json.loads(command("info", kept, "--json")[1])["trust"]
    loaded = RetrievalClassifier.load(kept)
    assert told == {
        "calibrated": {"method": "temperature", "n": 4},
        "conformalized": loaded.conformal_.to_dict(),
        "unknown": "?",
        "max_turned_away": 0.2,
    }
    loaded.store_.close()
    command("index", parts / "calibrate", kept, "--add")
    assert "calibrated  by temperature, on 0 images" in command("info", kept)[1]


def test_unknown_images_are_evaluated(command, kept, parts, class_folder):
    command("conformalize", parts / "both", kept, "--unknown", "?", "--max-turned-away", "0.1")
    asked = (
        *("evaluate", kept, "--test", class_folder / "test"),
        *("--unknown-images", parts / "other", "--json", parts / "report.json"),
    )
    status, _, err = command(*asked)
    assert status == 2
    assert "10 of the first 10 images were given to conformalize since the last fit" in err
    assert err.endswith("or pass --allow-tuned\n")
    status, out, err = command(*asked, "--allow-tuned")
    assert (status, err) == (0, "")
    found = json.loads((parts / "report.json").read_text())["unknown"]
    assert (found["n"], found["unknown_turned_away"]) == (3, 1.0)
    assert f"AUROC for unknown images: {found['auroc']:.4f} (3 images)" in out


def test_a_classifier_is_named_by_its_place_or_by_option(command, kept, class_folder):
    """The answers of sweep are the same."""
    options = ("--validation", class_folder / "test", "--k", "1,3", "--json")
    found = [command("sweep", *given, *options) for given in ((kept,), ("--classifier", kept))]
    assert [(status, err) for status, _, err in found] == [(0, "")] * 2
    rows = [[row["accuracy"] for row in json.loads(out)["rows"]] for _, out, _ in found]
    assert rows[0] == rows[1] != []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("conformalize", "both", "kept", "--score", "top"), "--score must be one of 'lac', 'aps', 'raps'"),
        (("conformalize", "both", "kept", "--max-turned-away", "2"), "--max-turned-away must lie between"),
        (("conformalize", "both", "kept", "--unknown", "flower"), "--unknown flower is one of the classes"),
        (
            ("conformalize", "both", "kept", "--unknown", "?"),
            "too few to reject at most 0.05: at least 19 are needed",
        ),
        (("conformalize", "both", "kept", "--max-turned-away", "2"), "such as 0.05; got 2"),
        (("evaluate", "kept", "--classifier", "kept", "--test", "both"), "CLASSIFIER and --classifier are"),
        (("sweep", "kept", "--train", "both", "--validation", "both"), "one of the two"),
        (("calibrate", "both", "kept", "--method", "platt"), "--method must be one of"),
        (("calibrate", "both", "kept", "--budget", "1"), "--budget is about the exits of a cascade"),
        (("classify", "kept", "other", "--coverage", "1"), "--coverage must lie between 0 and 1"),
        (("classify", "kept", "other", "--coverage", "0.9"), "run clipretrieval conformalize with"),
    ],
)
def test_what_cannot_be(arguments, message, command, kept, parts):
    """Nothing is kept then."""
    before = (kept / "classifier.json").read_bytes()
    given = [parts / each if each in ("both", "kept", "other") else each for each in arguments]
    status, _, err = command(*given)
    assert status == 2
    assert message in err
    assert (kept / "classifier.json").read_bytes() == before
