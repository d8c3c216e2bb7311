"""``clipretrieval audit``, as its users meet it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clipretrieval import AuditReport, RetrievalClassifier, StagedEncoder, audit
from clipretrieval.auditing import Decisions, ImageDecision

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def faulty(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, with a copy in the other class, a file that is no image, and a test image that leaked."""
    root = tmp_path_factory.mktemp("faulty")
    shutil.copytree(class_folder, root, dirs_exist_ok=True)
    shutil.copy(root / "train" / "temple" / "01.png", root / "train" / "flower" / "moved.png")
    shutil.copy(root / "train" / "temple" / "03.png", root / "test" / "temple" / "leaked.png")
    (root / "train" / "flower" / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    return root


def test_a_folder_is_audited_as_python_audits_it(command: Command, faulty: Path, tmp_path: Path) -> None:
    """Counts and first findings are printed, all of them written; a broken file gives status 3."""
    asked = (faulty / "train", "--test", faulty / "test", "--stage", "pixel", "--rows", 1)
    status, out, err = command("audit", *asked, "--json", tmp_path / "audit.json", "--findings", 50)
    assert (status, err) == (3, "")
    encoder = StagedEncoder(stage="pixel")
    expected = audit(faulty / "train", encoder=encoder, X_test=faulty / "test", limit=50)
    found = AuditReport.from_json(tmp_path / "audit.json")
    assert found.to_dict()["findings"] == expected.to_dict()["findings"]
    assert out == expected.text(1) + "\n"
    assert {Path(str(each.source)).name for each in found.of("duplicate")} == {"01.png", "moved.png"}
    assert {Path(str(each.source)).name for each in found.of("leak")} == {"03.png", "leaked.png"}
    lines = out.splitlines()
    assert lines[0] == "25 images of 2 classes, compared with 11 test images"
    assert "group 0" in out
    assert "equal images, under several labels" in out
    assert "broken.jpg" in lines[lines.index("files that cannot be decoded:") + 1]


def test_images_that_were_kept_are_not_listed_again(command: Command, faulty: Path, tmp_path: Path) -> None:
    """By one file of decisions or several."""
    asked = ("audit", faulty / "train", "--stage", "pixel", "--parts", "duplicate,broken")
    command(*asked, "--json", tmp_path / "audit.json")
    report = AuditReport.from_json(tmp_path / "audit.json")
    for kind in ("duplicate", "broken"):
        keep = [ImageDecision.on(each, "keep") for each in report.of(kind)]
        Decisions(report.fingerprint, keep).to_json(tmp_path / f"{kind}.json")
    status, out, err = command(*asked, "--decisions", tmp_path / "duplicate.json")
    assert (status, err) == (3, "")
    assert "not listed, as earlier decisions keep their images: 2 duplicate\n" in out
    both = ("--decisions", tmp_path / "duplicate.json", "--decisions", tmp_path / "broken.json")
    status, out, err = command(*asked, *both)
    assert (status, err) == (0, "")
    assert "not listed, as earlier decisions keep their images: 2 duplicate, 1 broken\n" in out
    status, _, err = command(*asked, "--decisions", "")
    assert (status, err) == (2, "error: --decisions must not be empty; pass '.' for the current folder\n")


@pytest.mark.filterwarnings("ignore:1 image was given under several labels")
def test_a_kept_classifier_is_audited(command: Command, faulty: Path, tmp_path: Path) -> None:
    """A classifier's folder is recognized; options of encoders are refused beside it, its encoder serves."""
    classifier = RetrievalClassifier(StagedEncoder(stage="pixel"), store="memory")
    classifier.fit(faulty / "train", on_error="skip").save(tmp_path / "kept")
    asked = ("--parts", "leak,outlier", "--test", faulty / "test")
    status, out, err = command("audit", tmp_path / "kept", *asked)
    assert (status, err) == (0, "")
    assert out == str(audit(classifier, X_test=faulty / "test", parts=["leak", "outlier"])) + "\n"
    status, out, err = command("audit", tmp_path / "kept", "--stage", "mid")
    assert status == 2
    assert err == "error: --stage cannot be used with a classifier's folder, which has its own encoder\n"
    vectors = RetrievalClassifier(store="memory").fit([[0.0], [0.1], [5.0], [5.1]], ["a", "a", "b", "b"])
    vectors.save(tmp_path / "vectors")
    status, out, _ = command("audit", tmp_path / "vectors")
    assert status == 0
    assert out.startswith("4 images of 2 classes\n")


def test_a_folder_keeps_what_is_done(command: Command, faulty: Path, tmp_path: Path) -> None:
    """With --output the second run says the same, and the report lies there; not within the images."""
    asked = (
        faulty / "train",
        "--stage",
        "pixel",
        "--parts",
        "label,duplicate",
        "--output",
        tmp_path / "kept",
    )
    first, second = command("audit", *asked), command("audit", *asked)
    assert first == second
    assert AuditReport.from_json(tmp_path / "kept" / "audit.json").text() + "\n" == first[1]
    status, _, err = command("audit", *asked[:-1], faulty / "train" / "kept")
    assert status == 2
    assert "which is read; name another folder" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--parts", "labels"), "parts must be one of 'label', 'duplicate', 'leak'"),
        (("--rows", -1), "--rows must be a whole number, at least 0; got -1"),
        (("--k", 0), "k must be a whole number, at least 1"),
        (("--parts", "harm"), "harm: no test images were given"),
    ],
)
def test_wrong_options_are_named(
    command: Command, faulty: Path, options: tuple[str | int, ...], message: str
) -> None:
    """One line tells what is wrong."""
    status, out, err = command("audit", faulty / "train", "--stage", "pixel", *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
