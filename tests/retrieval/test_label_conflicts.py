"""Equal images under several labels, and labels that look alike, are told of."""

from __future__ import annotations

import json
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier, StagedEncoder
from clipretrieval.stores import MemoryStore

ROWS = [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [5.0, 5.0]]


def fitted(rows: Any, labels: Any, **how: Any) -> RetrievalClassifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipRetrievalWarning)
        return RetrievalClassifier(store="memory").fit(rows, labels, **how)


def test_equal_vectors_under_two_labels_are_counted_and_listed() -> None:
    """A fit warns of equal inputs under two labels, reports both, and stores the last."""
    with pytest.warns(
        ClipRetrievalWarning,
        match="1 vector, equal as float32, was given under several labels, .*; the last label counts",
    ) as caught:
        classifier = RetrievalClassifier(store="memory").fit(ROWS, ["a", "b", "c", "a"])
    assert caught[0].filename == __file__
    report = classifier.fit_report_
    assert report.n_conflicts == 1
    (conflict,) = report.conflicts
    assert conflict.labels == ("a", "c")
    assert conflict.sources == (None, None)
    assert conflict.ids[0] == conflict.ids[1]
    assert classifier.store_.get(conflict.ids[:1]).labels.tolist() == ["c"]
    assert (report.new, report.already_there, report.relabelled, classifier.store_.count()) == (3, 0, 1, 3)
    assert json.loads(json.dumps(report.to_dict()))["conflicts"] == [conflict.to_dict()]
    assert "1 image given under several labels; the last counts:" in str(report)


def test_several_vectors_are_counted_in_the_plural() -> None:
    """Vectors that are two only as float64 are told of as equal as float32."""
    rows = [[1.0, 0.0], [1.0 + 1e-12, 0.0], [2.0, 0.0], [2.0, 0.0]]
    with pytest.warns(ClipRetrievalWarning) as caught:
        RetrievalClassifier(store="memory").fit(np.array(rows), ["a", "b", "a", "b"])
    messages = [str(warning.message) for warning in caught]
    assert any(m.startswith("2 vectors, equal as float32, were given under several") for m in messages)


def test_files_are_named(tmp_path: Path) -> None:
    """The list names the files of equal pictures in two class folders."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (8, 8), "red").save(tmp_path / label / "1.png")
        Image.new("RGB", (8, 8), (label == "cat" and "blue") or "green").save(tmp_path / label / "2.png")
    classifier = RetrievalClassifier(StagedEncoder(stage="pixel", pretrained=None), "memory")
    with pytest.warns(
        ClipRetrievalWarning, match=r"^1 image was given .*cat.1\.png as 'cat' and .*dog.1\.png as 'dog'"
    ):
        classifier.fit(tmp_path)
    (conflict,) = classifier.fit_report_.conflicts
    assert conflict.sources == (str(tmp_path / "cat/1.png"), str(tmp_path / "dog/1.png"))


def test_repeats_under_one_label_are_no_conflict() -> None:
    """Equal inputs under one label are not reported."""
    assert fitted(ROWS, ["a", "b", "a", "a"]).fit_report_.n_conflicts == 0


@pytest.mark.parametrize("n", [3000, 6000])
def test_conflicts_are_found_across_batches(n: int) -> None:
    """Repeats that are thousands of images apart, in other batches, are found; the list is bounded."""
    rows = np.arange(n, dtype=np.float32)[:, None].repeat(2, axis=1)
    classifier = fitted(np.concatenate([rows, rows[:30]]), [1] * n + [2] * 30)
    report = classifier.fit_report_
    assert report.n_conflicts == 30
    assert len(report.conflicts) == 20
    assert "… and 10 more" in str(report)


def test_a_resumed_fit_finds_conflicts_with_what_is_stored() -> None:
    """Repeats of which one was stored before an interruption are found when the fit is resumed."""
    store = MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipRetrievalWarning)
        RetrievalClassifier(store=store).fit(ROWS[:2], ["a", "b"])
    classifier = RetrievalClassifier(store=store)
    with pytest.warns(ClipRetrievalWarning, match="given under several labels"):
        classifier.fit(ROWS, ["a", "b", "c", "a"], resume=True)
    assert classifier.fit_report_.n_conflicts == 1
    assert classifier.fit_report_.conflicts[0].labels == ("a", "c")


def test_a_correction_by_another_call_is_no_conflict() -> None:
    """An image that a later call gives another label is relabelled without a warning."""
    classifier = fitted(ROWS, ["a", "b", "a", "a"])
    classifier.partial_fit(ROWS[:1] * 2, ["b", "b"])
    report = classifier.fit_report_
    assert (report.new, report.already_there, report.relabelled, report.n_conflicts) == (0, 1, 1, 0)
    assert classifier.predict(ROWS[:1]).tolist() == ["b"]


def test_labels_are_listed_in_the_order_in_which_they_were_last_given() -> None:
    """The last one listed counts, and has the file that it was last given with; ten labels are listed."""
    classifier = fitted(ROWS[:1] * 5, ["a", "b", "b", "c", "a"])
    assert classifier.fit_report_.conflicts[0].labels == ("b", "c", "a")
    assert classifier.predict(ROWS[:1]).tolist() == ["a"]
    (conflict,) = fitted(ROWS[:1] * 15, list(range(15))).fit_report_.conflicts
    assert conflict.labels == tuple(range(5, 15))
    assert len(conflict.ids) == len(conflict.sources) == 10


def test_files_of_other_batches_are_named(tmp_path: Path) -> None:
    """The path under each label is told also where the images are stored one by one."""
    for name, shade in (("a", 1), ("b", 2), ("c", 1), ("d", 1)):
        Image.new("L", (8, 8), shade).save(tmp_path / f"{name}.png")
    paths = sorted(tmp_path.iterdir())
    classifier = RetrievalClassifier(StagedEncoder(stage="pixel", pretrained=None), "memory")
    with pytest.warns(ClipRetrievalWarning, match=r"a\.png as 0 and .*c\.png as 1; the last label counts"):
        classifier.fit(paths, [0, 1, 1, 1], flush_every=1)
    (conflict,) = classifier.fit_report_.conflicts
    assert conflict.sources == (str(paths[0]), str(paths[2]))
    assert classifier.store_.get(conflict.ids[:1]).metadata == [{"source": str(paths[2])}]


def test_labels_that_look_alike_warn_at_fit() -> None:
    """Labels that differ in case or in Unicode normalisation alone are named by escapes."""
    composed, apart = "Zéro", unicodedata.normalize("NFD", "Zéro")
    with pytest.warns(ClipRetrievalWarning) as caught:
        RetrievalClassifier(store="memory").fit(
            np.arange(10.0).reshape(5, 2), [composed, apart, "One", "one", "two"]
        )
    (warning,) = caught
    message = str(warning.message)
    assert message.startswith("2 groups of labels differ in case, spaces or Unicode")
    assert "'One' and 'one'" in message
    assert r"'Ze\u0301ro' and 'Z\xe9ro'" in message
    assert warning.filename == __file__


def test_labels_that_look_alike_warn_at_partial_fit_when_they_are_new() -> None:
    """An addition warns of a class that looks like a known one, and of each only once."""
    classifier = fitted([[0.0], [1.0]], ["One", "two"])
    with pytest.warns(ClipRetrievalWarning, match="'One' and 'one'"):
        classifier.partial_fit([[2.0]], ["one"])
    classifier.partial_fit([[3.0]], ["one"])
    assert classifier.classes_.tolist() == ["One", "one", "two"]


def test_labels_that_look_alike_warn_at_relabel_when_they_are_new() -> None:
    """A correction to another spelling warns once, while both spellings are classes."""
    classifier = fitted([[0.0], [1.0], [2.0], [3.0]], ["One", "One", "One", "two"])
    ids = classifier.kneighbors([[0.0], [1.0], [2.0]], 1).ids[:, 0].tolist()
    with pytest.warns(ClipRetrievalWarning) as caught:
        assert classifier.relabel(ids[:1], ["one "]) == 1
    (warning,) = caught
    assert str(warning.message).startswith("1 group of labels differs in case, spaces or Unicode")
    assert "'One' and 'one '" in str(warning.message)
    assert warning.filename == __file__
    assert classifier.relabel(ids[1:2], ["one "]) == 1
    assert classifier.relabel(ids[2:], ["one "]) == 1  # which leaves nothing under the first spelling
    assert classifier.relabel(ids, "ONE") == 3
    assert classifier.classes_.tolist() == ["ONE", "two"]


def test_numbers_have_no_lookalikes() -> None:
    """Integer labels are never taken for each other."""
    assert fitted([[0.0], [1.0]], [1, 11]).classes_.tolist() == [1, 11]
