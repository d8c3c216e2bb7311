"""The demonstration from end to end, and its command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipretrieval import InvalidInputError
from clipretrieval.demo import UNSEEN_KINDS, DemoResult, run_demo


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """A small demonstration: 30 pictures of each kind, 10 to be classified."""
    return run_demo(tmp_path_factory.mktemp("demo") / "pictures", train=30, test=10, seed=3)


def test_every_stage_is_measured_on_the_same_pictures(result: DemoResult) -> None:
    """The four stages and the zero-shot answer classify the same 100 pictures, and mid beats pixels."""
    assert [each.name for each in result.measured] == ["pixel", "mid", "late", "final", "zero-shot"]
    assert (result.n_train, result.n_test) == (300, 100)
    for each in result.measured:
        np.testing.assert_array_equal(each.truth, result.measured[0].truth)
        assert each.accuracy() == (each.answers == each.truth).mean()
    assert result["mid"].accuracy() > result["pixel"].accuracy()
    assert result["zero-shot"].accuracy() > result["pixel"].accuracy()


def test_accuracy_of_some_kinds_counts_only_these(result: DemoResult) -> None:
    """The accuracy of the unseen kinds is that of their 20 pictures."""
    late = result["late"]
    asked = np.isin(late.truth, UNSEEN_KINDS)
    assert asked.sum() == 20
    assert late.accuracy(UNSEEN_KINDS) == (late.answers[asked] == late.truth[asked]).mean()


def test_adding_kinds_needs_no_training(result: DemoResult) -> None:
    """Adding the unseen kinds gives the classifier that was fitted on all kinds at once, and a better one."""
    assert result.online.added == 60
    assert result.online.before <= 0.8
    assert result.online.after > result.online.before
    assert result.online.after == result["late"].accuracy()


def test_it_says_what_the_table_means(result: DemoResult) -> None:
    """Four sentences follow the table, and hold its figures."""
    shown = str(result)
    sentences = result.sentences()
    assert len(sentences) == 4
    assert all(sentence.endswith(".") and sentence in shown for sentence in sentences)
    for name in ("pixel", "mid", "late"):
        assert f"{result[name].accuracy():.1%}" in sentences[0]
    assert f"{result.online.after:.1%}" in sentences[3]


def test_the_command_runs_the_demonstration(tmp_path: Path) -> None:
    """``clipretrieval demo`` prints table and sentences, leaves its pictures, and may be run again."""
    command = [sys.executable, "-m", "clipretrieval", "demo", "--out", "shown", "--per-kind", "16"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[0].split()[:2] == ["dim", "accuracy"]
        assert "zero-shot" in done.stdout
        assert "drawing 160 + 40 pictures" in done.stderr
    assert len(list((tmp_path / "shown/pictures/test").rglob("*.png"))) == 40


def test_training_seeds_are_refused(tmp_path: Path) -> None:
    """The demonstration never draws what the model was trained on."""
    with pytest.raises(InvalidInputError, match="0 to 19999"):
        run_demo(tmp_path / "out", seed=20_000)
