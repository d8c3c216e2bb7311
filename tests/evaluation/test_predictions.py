"""The single answers as tables: of a report, and of neighbours."""

from __future__ import annotations

import csv
import io
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipretrieval import (
    EvaluationReport,
    InvalidInputError,
    MissingDependencyError,
    Neighbors,
    RetrievalClassifier,
    StagedEncoder,
)
from clipretrieval._util.timing import Timing
from clipretrieval.stores import MemoryStore

COLUMNS = ["source", "true", "predicted", "correct", "share", "margin", "distance"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one colour each in two classes, among them one that is damaged."""
    for name, value in {"dark/0.png": 0, "dark/1.png": 40, "light/3.png": 220, "light/4.png": 250}.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (value,) * 3).save(path)
    (tmp_path / "pictures" / "light" / "2.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def evaluated(folder: Path) -> EvaluationReport:
    """Pictures asked about that answer for themselves, the damaged one skipped."""
    encoder = StagedEncoder(stage="pixel")
    grey = [np.full((8, 8, 3), value, np.uint8) for value in (10, 30, 70, 200)]
    classifier = RetrievalClassifier(encoder, store="memory", k=3).fit(
        grey, ["dark", "dark", "dark", "light"]
    )
    return classifier.evaluate(folder, on_error="skip")


def test_each_answer_has_a_row_with_its_file(folder: Path) -> None:
    """The file, both labels and all three measures; the skipped image has no row and leaves a gap."""
    report = evaluated(folder)
    frame = report.to_frame()
    assert list(frame.columns) == COLUMNS
    assert frame.index.name == "position"
    assert frame.index.tolist() == [0, 1, 3, 4]
    assert [Path(source).name for source in frame.source] == ["0.png", "1.png", "3.png", "4.png"]
    assert [skipped.index for skipped in report.skipped] == [2]
    assert frame.true.tolist() == ["dark", "dark", "light", "light"]
    assert frame.predicted.tolist() == ["dark"] * 4
    assert frame.correct.tolist() == [True, True, False, False]
    assert frame.correct.mean() == report.accuracy
    assert frame.share.tolist() == [1.0, 1.0, 2 / 3, 2 / 3]
    assert frame.margin.tolist() == [1.0, 1.0, 1 / 3, 1 / 3]
    expected = 3072 * np.square([10, 10, 20, 50]) / 255**2
    assert frame.distance.tolist() == pytest.approx(expected, rel=1e-5)


def test_csv_holds_the_same_as_the_frame(folder: Path, tmp_path: Path) -> None:
    """What pandas reads from the file is the frame, to the last digit; the text is returned too."""
    report = evaluated(folder)
    text = report.to_csv(tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == text + "\n"
    # Its default engine may round the last digit.
    types = {"distance": np.float32}
    read = pd.read_csv(tmp_path / "out.csv", index_col="position", dtype=types, engine="python")
    pd.testing.assert_frame_equal(read, report.to_frame(), check_exact=True)


def test_csv_keeps_names_exactly() -> None:
    """Commas, quotes, line breaks and formulas stay as they are; bytes that are no text become escapes."""
    names = ["=1+1", "a,b", 'say "no"', "two\nlines", "/caf\udce9.png", "@x"]
    y = np.array(names[:1] * 6, dtype=object)
    report = EvaluationReport(
        y, y, np.array([0.5, 0.1, 2, 3, 4, math.inf], np.float32), y[:1], {}, Timing(), sources=tuple(names)
    )
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["source"] for row in rows] == [*names[:4], r"/caf\udce9.png", "@x"]
    assert rows[1] == {
        "position": "1",
        "source": "a,b",
        "true": "=1+1",
        "predicted": "=1+1",
        "correct": "True",
        "share": "",
        "margin": "",
        "distance": "0.1",
    }
    assert rows[5]["distance"] == "inf"


def test_vectors_have_no_file() -> None:
    """Where images did not come from files the column is empty, and the rows are still counted."""
    classifier = RetrievalClassifier(store="memory").fit([[0.0], [1.0]], [1, 2])
    frame = classifier.evaluate([[0.2], [0.9]], [1, 1]).to_frame()
    assert frame.source.tolist() == [None, None]
    assert frame.index.tolist() == [0, 1]
    assert frame.true.dtype == np.int64
    assert frame.predicted.tolist() == [1, 2]


def test_rows_must_match_the_answers() -> None:
    """A report with more files than answers is refused."""
    y = np.array(["a"])
    with pytest.raises(InvalidInputError, match="arrays of shape"):
        EvaluationReport(y, y, np.zeros(1, np.float32), y, {}, Timing(), sources=("a", "b"))


def test_a_csv_that_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(InvalidInputError, match=r"cannot be written to .*missing"):
        evaluated(folder).to_csv(tmp_path / "missing" / "out.csv")


def test_neighbours_in_long_form() -> None:
    """One row for each neighbour, the nearest with rank 1; padding has none."""
    store = MemoryStore()
    store.upsert(["a", "b"], np.array([[0.0], [3.0]], np.float32), [7, 8])
    frame = store.search(np.array([[1.0], [4.0]], np.float32), 3).to_frame()
    assert list(frame.columns) == ["query", "rank", "id", "label", "distance"]
    assert frame.to_numpy().tolist() == [
        [0, 1, "a", 7, 1.0],
        [0, 2, "b", 8, 4.0],
        [1, 1, "b", 8, 1.0],
        [1, 2, "a", 7, 16.0],
    ]
    assert frame.label.dtype == np.int64


def test_without_pandas_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message gives the command; CSV needs no pandas."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    y = np.array(["a"])
    report = EvaluationReport(y, y, np.zeros(1, np.float32), y, {}, Timing())
    near = Neighbors(np.array([["x"]]), np.zeros((1, 1), np.float32), np.array([["a"]]))
    for table in (report.to_frame, near.to_frame):
        with pytest.raises(MissingDependencyError, match="pip install pandas"):
            table()
    assert (
        report.to_csv() == "position,source,true,predicted,correct,share,margin,distance\n0,,a,a,True,,,0.0"
    )
