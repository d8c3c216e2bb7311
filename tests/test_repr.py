"""Reprs: one short line for whatever the library returns, however much it holds."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clipretrieval import ClipRetrievalError, EvaluationReport, RetrievalClassifier, StagedEncoder
from clipretrieval.comparison.speed import Speed
from clipretrieval.evaluation import (
    ComparisonReport,
    ComparisonRow,
    PageTable,
    Reproduction,
    calibration_curve,
    distance_histogram,
)
from clipretrieval.images import iter_raw, scan_folder
from clipretrieval.stores import (
    ChromaStore,
    FaissStore,
    LanceStore,
    MemoryStore,
    PgVectorStore,
    PineconeStore,
)
from clipretrieval.testing import PineconeEmulator

LONG = (
    "a class whose name is so long that a repr of it alone would fill more than the line of a terminal " * 5
)
VECTORS = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
LABELS = [LONG if place % 3 else f"{LONG}{place}" for place in range(300)]


@pytest.fixture(scope="module")
def returned() -> dict[str, Any]:
    """All that a classifier of vectors returns, and what a comparison is made of."""
    classifier = RetrievalClassifier(store="memory", k=5).fit(VECTORS[:300], LABELS)
    report = classifier.evaluate(VECTORS[300:], [LONG, *LABELS[:99]])
    row = ComparisonRow("late", report, Speed(1.5, 0.25, [0.1] * 500), 4096)
    comparison = ComparisonReport((row,) * 4, "late", 300, 100, 50)
    near = classifier.kneighbors(VECTORS, 5)
    records = classifier.store_.get(near.ids[:, 0].tolist())
    found = {
        "report": report,
        "row": row,
        "comparison": comparison,
        "reproduction": Reproduction(comparison, ("other weights",) * 9),
        "mistake": report.mistakes[0],
        "explanation": classifier.explain(VECTORS[:1], 9)[0],
        "neighbors": near,
        "records": records,
        "listing": next(iter(classifier.store_.scan(LONG))),
        "fit": classifier.fit_report_,
        "sweep": classifier.sweep(VECTORS[300:], LABELS[:100], k=range(1, 9), allow_known=True),
        "reliability": report.reliability("share"),
        "curve": report.risk_coverage,
        "histogram": distance_histogram(report.distances, report.correct),
        "calibration": calibration_curve(report.confidence, report.correct),
        "table": PageTable(LONG, [("a", "b")], [{"a": 1}] * 50),
        "speed": row.speed,
    }
    found["forgotten"] = classifier.forget(near.ids[:300, 0].tolist())
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("report", "row", "comparison", "reproduction", "mistake", "explanation", "neighbors", "records"),
        *("listing", "fit", "sweep", "reliability", "curve", "histogram", "calibration", "table", "speed"),
        "forgotten",
    ],
)
def test_every_repr_is_one_short_line(returned: dict[str, Any], name: str) -> None:
    """It begins with the class's name and holds in a line or two of a terminal."""
    text = repr(returned[name])
    assert text.startswith(f"{type(returned[name]).__name__}(")
    assert text.endswith(")")
    assert "\n" not in text
    assert len(text) <= 260


def test_reprs_tell_the_figures_that_matter(returned: dict[str, Any]) -> None:
    """Accuracy and counts are there by value."""
    report: EvaluationReport = returned["report"]
    assert repr(report) == (
        f"EvaluationReport(accuracy={report.accuracy:.4g}, n_test=100, classes={len(report.classes)}, "
        "store='memory', k=5)"
    )
    assert repr(returned["comparison"]) == "ComparisonReport(rows=4, n_train=300, n_test=100)"
    assert repr(returned["neighbors"]) == "Neighbors(queries=400, k=5)"
    assert repr(returned["records"]) == f"Records(n={len(returned['records'])}, dim=8)"
    assert repr(returned["fit"]).startswith("FitReport(new=300, already_there=0, relabelled=0, skipped=0, ")
    assert repr(returned["speed"]) == "Speed(inference_s=1.5, query_s=0.25, latencies=500)"


def test_folders_and_pictures_do_not_show_all_they_hold(class_folder: Any) -> None:
    """A folder tells how many images it lists, a picture not its bytes."""
    folder = scan_folder(class_folder / "train")
    text = repr(folder)
    assert text.startswith("ImageFolder(root=")
    assert f"images={len(folder)}, classes={len(folder.classes)})" in text
    (raw,) = iter_raw([b"\x89PNG" * 1000])
    assert repr(raw) == "RawImage(index=0, payload='bytes', label=None, source=None)"


def test_neighbours_of_one_query_too() -> None:
    """Empty results have a repr as well."""
    classifier = RetrievalClassifier(store="memory").fit(VECTORS[:3], ["a", "b", "c"])
    assert repr(classifier.store_.get([])) == "Records(n=0, dim=8)"


@pytest.mark.parametrize(
    "kind",
    [
        *(MemoryStore, FaissStore, ChromaStore, LanceStore, PgVectorStore, PineconeStore),
        *(StagedEncoder, PineconeEmulator),
    ],
)
def test_an_object_whose_constructor_never_ran_has_a_repr(kind: Any) -> None:
    """A debugger may show it at any moment."""
    assert repr(kind.__new__(kind)) == f"{kind.__name__}(not initialized)"


@pytest.mark.parametrize(
    "call",
    [
        lambda: MemoryStore("hamming"),
        lambda: FaissStore(metric="hamming"),
        lambda: FaissStore(recall=7),
        lambda: FaissStore(create=False),
        lambda: ChromaStore(metric="hamming"),
        lambda: ChromaStore(host="http://chroma.invalid"),
        lambda: LanceStore("folder", metric="hamming"),
        lambda: PgVectorStore("host=a", metric="hamming"),
        lambda: PineconeStore("No Index", api_key="key"),
        lambda: StagedEncoder("RN999"),
        lambda: StagedEncoder(stage="nowhere"),
        lambda: StagedEncoder(pooling="least"),
    ],
)
def test_a_refusing_constructor_can_be_shown_with_its_locals(call: Callable[[], Any]) -> None:
    """Tracebacks with local variables print the object that was being made."""
    with pytest.raises(ClipRetrievalError) as caught:
        call()
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert "(not initialized)" in "".join(shown.format())
