"""The demonstration from end to end, and its command."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from warm_process import run_warm

from clipretrieval import InvalidInputError
from clipretrieval.demo import UNSEEN_KINDS, DemoResult, draw_many, run_demo


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """A small demonstration: 30 pictures of each kind, 10 to be classified."""
    return run_demo(tmp_path_factory.mktemp("demo"), train=30, test=10, seed=3)


def test_every_stage_is_measured_on_the_same_pictures(result: DemoResult) -> None:
    """The zero-shot answer and the four stages classify the same 100 pictures, and mid beats pixels."""
    rows = result.comparison.rows
    assert [row.name for row in rows] == ["zero-shot", "pixel", "mid", "late", "final"]
    assert (result.comparison.n_train, result.comparison.n_test) == (300, 100)
    for row in rows:
        np.testing.assert_array_equal(row.report.y_true, rows[0].report.y_true)
        assert result.accuracy(row.name) == row.report.accuracy
    assert result.accuracy("mid") > result.accuracy("pixel")
    assert result.accuracy("zero-shot") > result.accuracy("pixel")


def test_the_pictures_are_those_of_the_seed(result: DemoResult) -> None:
    """The classified pictures are the ones that `draw_many` draws behind the labelled ones, of ten kinds."""
    images, labels = draw_many(10, seed=3, first=30)
    files = sorted((result.pictures / "test").rglob("*.png"))
    assert sorted(path.parent.name for path in files) == sorted(labels)
    assert len({image.tobytes() for image in images}) == len(files) == 100


def test_accuracy_of_some_kinds_counts_only_these(result: DemoResult) -> None:
    """The accuracy of the unseen kinds is that of their 20 pictures."""
    report = result.comparison["late"].report
    truth, answers = np.asarray(report.y_true), np.asarray(report.y_pred)
    asked = np.isin(truth, UNSEEN_KINDS)
    assert asked.sum() == 20
    assert result.accuracy("late", UNSEEN_KINDS) == (answers[asked] == truth[asked]).mean()


def test_adding_kinds_needs_no_training(result: DemoResult) -> None:
    """Adding the unseen kinds gives the classifier that was fitted on all kinds at once, and a better one."""
    assert result.online.added == 60
    assert result.online.before <= 0.8
    assert result.online.after > result.online.before
    assert result.online.after == result.accuracy("late")


def test_it_says_what_the_table_means(result: DemoResult) -> None:
    """Four sentences follow the table, and hold its figures."""
    shown = str(result)
    sentences = result.sentences()
    assert len(sentences) == 4
    assert all(sentence.endswith(".") and sentence in shown for sentence in sentences)
    for name in ("pixel", "mid", "late"):
        assert f"{result.accuracy(name):.1%}" in sentences[0]
    assert f"{result.accuracy('zero-shot'):.1%}" in sentences[1]
    assert f"{result.accuracy('late', UNSEEN_KINDS):.1%}" in sentences[2]
    assert f"{result.online.after:.1%}" in sentences[3]


def test_the_page_holds_the_figures(result: DemoResult) -> None:
    """The HTML report has the sentences and the whole report of each row, and fetches nothing."""
    page = result.page.read_text(encoding="utf-8")
    assert result.page.name == "report.html"
    assert "never shown or named to this model" in page
    for row in result.comparison.rows:
        assert row.name in page
    assert not re.search(r"(?:src|href)=.https?:", page)


def test_the_command_runs_the_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``clipretrieval demo`` prints table and sentences, and says where its pictures and its report are."""
    monkeypatch.chdir(tmp_path)
    done = run_warm(["-m", "clipretrieval", "demo", "--out", "shown", "--per-kind", "8"], check=True)
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["dim", "accuracy"]
    assert [line.split()[0] for line in lines[1:6]] == ["zero-shot", "pixel", "mid", "late", "final"]
    assert lines[-2].split() == ["report:", "shown/report.html"]
    assert re.fullmatch(r"All of this took \d+ s\.", lines[-1])
    assert "drawing 80 + 20 images" in done.stderr
    assert len(list((tmp_path / "shown/pictures/test").rglob("*.png"))) == 20
    assert (tmp_path / "shown/report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_what_the_demo_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never draws what the model was trained on, nor fewer pictures than it can classify."""
    with pytest.raises(InvalidInputError, match="at least 0 and at most 19999"):
        run_demo(tmp_path / "out", seed=20_000)
    monkeypatch.chdir(tmp_path)
    done = run_warm(["-m", "clipretrieval", "demo", "--out", "out", "--per-kind", "3"])
    assert done.returncode != 0
    assert "at least 4" in done.stderr
    assert not (tmp_path / "out").exists()
