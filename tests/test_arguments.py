"""Whatever a public call is given, it works as documented or says what is wrong in an error of ours."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from arguments import STRANGE, calls, is_right, try_call

from clipretrieval.stores import registry

MODULES = [
    *(
        "clipretrieval",
        "clipretrieval.auditing",
        "clipretrieval.cascade",
        "clipretrieval.demo",
        "clipretrieval.encoding",
        "clipretrieval.evaluation",
    ),
    *("clipretrieval.explanation", "clipretrieval.heads", "clipretrieval.images", "clipretrieval.prompts"),
    *("clipretrieval.stores", "clipretrieval.trust", "clipretrieval.types", "clipretrieval.vectors"),
]
RECORDS = "a record that the library makes, which takes what it is given"
PROTOCOL = "a protocol, which does nothing"
ARRAYS = "a step of a computation on arrays that the library has checked"
NOT_TRIED = {
    **dict.fromkeys(
        (
            *("Architecture", "CalibrationCurve", "ComparisonReport", "ComparisonRow", "DecodedImage"),
            *("DemoResult", "DistanceHistogram", "DistanceSummary", "EncodedBatch", "EvaluationReport"),
            *(
                "ExplainedNeighbor",
                "ExplainedPart",
                "Explanation",
                "FitReport",
                "ForgetReport",
                "ImageFolder",
            ),
            *("LabelConflict", "Listing", "McNemar", "Mistake", "Neighbors", "OnlineStep", "PageTable"),
            *("RawImage", "Records", "Reproduction", "RiskCoverage", "Scene", "SkippedImage", "Stage"),
            *("ImageTable", "IndexInfo", "InferencePlan", "KnownImage", "Recommendation", "Reliability"),
            *("AppliedDecisions", "AuditReport", "Estimate", "Finding", "ImageDecision", "RelatedImage"),
            *("Queries", "StoredSample", "SweepResult"),
            *("Calibration", "CascadeExplanation", "CascadeReport", "ExitEvidence", "ExitFigures"),
            *("ExitPolicy", "ExitStep"),
            *("EncodeReport", "MergeReport", "PartReport"),
            *("CalibrationReport", "ConformalReport", "PredictionSets", "UnknownFigures"),
        ),
        RECORDS,
    ),
    **dict.fromkeys(
        (
            *("BlobStore", "Encoder", "LocatedStore", "PortableStore", "RefreshableStore", "ScannableStore"),
            *("ExclusiveStore", "LocalFilesStore", "StreamingEncoder", "VectorStore"),
            *("Contents", "Head", "LearnedHead", "OpenHead", "PartedHead"),
        ),
        PROTOCOL,
    ),
    **dict.fromkeys(
        (
            *("ClassStatistics", "accuracy_by_decile", "best_measure", "calibration_curve", "class_table"),
            *("confused_pairs", "content_id", "decode", "differences", "distance_histogram", "error_auroc"),
            *("macro_averages", "mcnemar_exact", "render", "risk_coverage"),
            *("betting_p_value", "last_accepted", "least_sample"),
            *("sample_scene", "stage_table", "summarise_distances", "unique_ids", "wilson_interval"),
        ),
        ARRAYS,
    ),
    **dict.fromkeys(("PartialPass", "TextEncoder"), "what a StagedEncoder makes and returns"),
    "Metric": "tried as Metric.parse",
    "PgVectorStore": "tried at a server",
    "PineconeStore": "tried against its emulator",
    "available_stores": "takes nothing",
    "read_table": "tried with the tables that it reads",
    "read_tars": "tried with the tars that it reads",
    "ImageTars": "what read_tars makes",
    "demo_model": "takes nothing",
    "evaluate": "what the method of that name calls",
    "ShardJob": "what encode makes",
}


def test_strange_arguments_are_refused_in_our_own_words(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each parameter of each call refuses each strange value by an error of ours, or rightly takes it."""
    wrong, tried = [], 0
    for number, call in enumerate(calls(tiny_model, tmp_path)):
        room = tmp_path / "rooms" / str(number)
        room.mkdir(parents=True)
        monkeypatch.chdir(room)
        monkeypatch.setattr(registry, "_registered", {})
        for outcome in try_call(call):
            tried += 1
            if not is_right(call, outcome):
                wrong.append(str(outcome))
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong[:100])
    assert tried > 100 * len(STRANGE)


def test_every_public_call_is_tried(tiny_model: str, tmp_path: Path) -> None:
    """No public class or function is left out without a reason."""
    tried = {call.name.split(".")[-1].split(" ")[0] for call in calls(tiny_model, tmp_path)}
    public = {
        name
        for module in MODULES
        for name in importlib.import_module(module).__all__
        if callable(found := getattr(importlib.import_module(module), name))
        and str(getattr(found, "__module__", "")).startswith("clipretrieval")
        and not (inspect.isclass(found) and issubclass(found, Exception))
    }
    assert sorted(public - tried - set(NOT_TRIED)) == []
