"""``clipretrieval audit --html`` and ``--apply``: from the page to what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from audited import decided, draw, draw_folder, files, forget, relabel, stored

from clipretrieval import RetrievalClassifier, StagedEncoder

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A classifier's folder beside the one of its images."""
    made = RetrievalClassifier(StagedEncoder(stage="pixel"), k=1).fit(draw_folder(tmp_path / "pictures"))
    made.save(tmp_path / "kept")
    decided(
        made,
        relabel(tmp_path / "pictures/cat/240.png", "cat", "dog"),
        forget(tmp_path / "pictures/dog/40.png", "dog"),
    ).to_json(tmp_path / "decisions.json")
    return tmp_path / "kept"


def test_decisions_are_carried_out_on_what_is_kept(command: Command, kept: Path) -> None:
    """A dry run tells what would be done; then classifier and files are changed, once."""
    root, asked = kept.parent, ("audit", kept, "--apply", kept.parent / "decisions.json")
    moves = ("--folder", root / "pictures")
    before = files(root)
    status, out, err = command(*asked, *moves, "--dry-run")
    assert (status, err) == (0, "")
    bright, dark = root / "pictures/cat/240.png", root / "pictures/dog/40.png"
    assert out.splitlines() == [
        f"would relabel {bright}: cat → dog",
        f"would forget {dark} (dog)",
        f"would move {bright} → {root / 'pictures/dog/240.png'}",
        f"would move {dark} → {root / 'pictures/_removed/dog/40.png'}",
        "would be: 1 relabeled, 1 forgotten, 2 files moved",
    ]
    assert files(root) == before
    assert command(*asked, *moves) == (0, "1 relabeled, 1 forgotten, 2 files moved\n", "")
    found = RetrievalClassifier.load(kept)
    assert found.predict(root / "pictures/dog/240.png").tolist() == ["dog"]
    assert sorted(stored(found).values()) == ["cat"] * 3 + ["dog"] * 4
    found.store_.close()
    assert command(*asked, *moves) == (0, "2 as decided already\n", "")


def test_what_cannot_be_carried_out_is_named(command: Command, kept: Path) -> None:
    """Skipped decisions are told with the reason, status 3; a folder alone can be changed, too."""
    root = kept.parent
    draw(root / "pictures/cat/240.png", 7)
    status, out, err = command("audit", root / "pictures", "--apply", root / "decisions.json")
    assert (status, out) == (3, "1 skipped, 1 file moved\n")
    bright = root / "pictures/cat/240.png"
    assert err == f"skipped: {bright}: the file {str(bright)!r} holds another image now\n"
    (root / "other.json").write_text(
        json.dumps({**json.loads((root / "decisions.json").read_text()), "fingerprint": {}})
    )
    for arguments, message in {
        ("--apply", root / "other.json"): "the audit of another classifier",
        ("--apply", root / "none.json"): "cannot be read",
        ("--apply", root / "decisions.json", "--k", 3): "--k cannot be used with --apply",
        ("--apply", root / "decisions.json", "--json", root / "a.json"): "--json cannot be used with --apply",
        ("--dry-run",): "--dry-run cannot be used with an audit; name the decisions to apply with --apply",
        ("--html", kept / "page.html"): "is a part of",
    }.items():
        status, out, err = command("audit", kept, *arguments)
        assert (status, out) == (2, "")
        assert message in err
    status, _, err = command(
        "audit", root / "pictures", "--apply", root / "decisions.json", "--folder", root / "pictures"
    )
    assert (status, "--folder is for a classifier" in err) == (2, True)


def test_the_page_is_written(command: Command, kept: Path, tmp_path: Path) -> None:
    """With the report beside it, from the folder of a classifier."""
    status, out, err = command("audit", kept, "--parts", "duplicate,outlier", "--html", tmp_path / "a.html")
    assert (status, err) == (0, ""), out
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "8 images of 2 classes were audited" in page
