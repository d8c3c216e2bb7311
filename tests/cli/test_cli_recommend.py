"""``clipretrieval recommend``, as its users meet it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clipretrieval import StagedEncoder, recommend

Command = Callable[..., tuple[int, str, str]]

STAGES = ("--stages", "layer1,mid")


def test_the_table_the_advice_and_the_code_are_printed_and_written(
    command: Command, class_folder: Path, tiny_model: str, tmp_path: Path
) -> None:
    """What is printed is what Python gives, apart from times; JSON and the page lie in their files."""
    written = ("--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    asked = ("--model", tiny_model, *STAGES, "--poolings", "mean,max", "--heads", "votes,discriminant")
    status, out, err = command("recommend", class_folder / "train", *asked, *written, "--precision", "fp32")
    assert (status, err) == (0, "")
    expected = recommend(
        class_folder / "train",
        encoder=StagedEncoder(tiny_model, precision="fp32"),
        stages=("layer1", "mid"),
        poolings=("mean", "max"),
        heads=("votes", "discriminant"),
    )
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found["code"] == expected.code
    assert out.splitlines()[-3:] == expected.program.splitlines()[-3:]
    assert out.splitlines()[-2:] == [
        f"classifier = {expected.code}",
        f"classifier.fit({json.dumps(str(class_folder / 'train'))})",
    ]
    timeless = [
        [{name: value for name, value in row.items() if not name.endswith("_ms")} for row in rows]
        for rows in (found["rows"], expected.rows)
    ]
    assert timeless[0] == timeless[1]
    assert found["interval"] == list(expected.interval)
    assert f"expect {expected.accuracy:.2%} right answers" in out
    assert "<svg" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_wishes_and_images_are_those_of_the_options(
    command: Command, class_folder: Path, tiny_model: str
) -> None:
    """Cost, accuracy, size, folds, way and number of images reach the function."""
    asked = ("--model", tiny_model, *STAGES, "--heads", "discriminant", "--image-size", 96, "--limit", 20)
    wishes = ("--max-cost", 1e-9, "--min-accuracy", 0.5, "--split", "--folds", 4)
    status, out, err = command("recommend", class_folder / "train", *asked, *wishes)
    assert (status, err) == (0, "")
    assert "20 images of 2 classes" in out
    assert "no candidate keeps within 1e-09" in out
    assert "image_size=96" in out
    assert "2 others measured on" not in out
    assert "others measured on" in out
    assert "to promise max_loss=0.005 with a confidence of 0.95 takes 639 images" in out
    promise = ("--max-loss", 0.5, "--confidence", 0.5)
    status, out, err = command("recommend", class_folder / "train", *asked[:-2], *promise)
    assert (status, err) == (0, "")
    assert "layer1, mid" in out
    assert (
        "layer1, mid"
        not in command("recommend", class_folder / "train", *asked, *promise, "--no-cascades")[1]
    )


def test_skipped_images_are_named_and_told_by_the_status(
    command: Command, class_folder: Path, tmp_path: Path
) -> None:
    """With --on-error skip the rest is used, and the status is 3."""
    shutil.copytree(class_folder / "train", tmp_path / "crops")
    (tmp_path / "crops" / "temple" / "00.jpg").write_bytes(b"no image")
    asked = ("recommend", tmp_path / "crops", "--stages", "pixel", "--heads", "discriminant")
    status, _, err = command(*asked)
    assert (status, "00.jpg" in err, err.count("\n")) == (2, True, 1)
    status, out, err = command(*asked, "--on-error", "skip")
    assert status == 3
    assert err.startswith("skipped: ")
    assert "23 images of 2 classes" in out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--heads", "best"), "unknown head 'best'"),
        (("--stages", "nowhere"), "unknown stage 'nowhere'"),
        (("--stages", ""), "stages is empty"),
        (("--min-accuracy", "90"), "--min-accuracy must be"),
        (("--limit", "3"), "at least 3 different images"),
        (("--html", "{folder}/temple/00.jpg"), "is a part of"),
        (("--html", "r", "--json", "r"), "name the same file"),
    ],
)
def test_mistakes_are_one_line(
    command: Command,
    class_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    told: str,
) -> None:
    """Nothing is done, and the line says what is wrong."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(class_folder / "train", "crops")
    given = (each.format(folder="crops") for each in options)
    status, out, err = command("recommend", "crops", "--pretrained", "none", *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]
