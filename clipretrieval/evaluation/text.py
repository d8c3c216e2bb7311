"""An evaluation report as text and as Markdown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.text import readable, shortened
from clipretrieval.evaluation.markdown import markdown_table
from clipretrieval.evaluation.report_json import timed_parts
from clipretrieval.evaluation.words import (
    best_words,
    distance_axis,
    measure_axis,
    measure_name,
    shown_measure,
    value_words,
)
from clipretrieval.types import FloatArray

if TYPE_CHECKING:
    from clipretrieval.evaluation.report import EvaluationReport

__all__ = [
    *("MEASURE_HEAD", "as_markdown", "as_text", "listed_classes", "measure_rows", "setting_rows"),
    "summary_rows",
]

CLASSES = 1000
"""The most classes that a reader is shown; JSON has all."""

LONGEST = 60
"""The most letters of a class's name in text, which is aligned to the longest."""

PAIRS = 20
"""The most pairs of confused classes that Markdown lists."""

_SETTINGS = ("model", "pretrained", "stage", "dim", "store", "metric", "k", "weights", "n_train")


def as_text(report: EvaluationReport) -> str:
    """Return a report as aligned text."""
    low, high = report.accuracy_interval
    s = {name: report.setting.get(name) for name in _SETTINGS}
    shown = {name: "-" if value is None else value for name, value in s.items()}
    correct, incorrect = report.distances[report.correct], report.distances[~report.correct]
    lines = [
        f"accuracy {report.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"{int(report.correct.sum())} of {report.n_test} images",
        "model {model}, stage {stage}, dim {dim}; store {store}, metric {metric}".format(**shown)
        # A zero-shot answer rests on prompts: nothing is stored, and no neighbours vote.
        + (", k {k}, weights {weights}, {n_train} stored vectors".format(**shown) if s["n_train"] else ""),
        f"median {distance_axis(report)}: correct {_median(correct)}, incorrect {_median(incorrect)}",
    ]
    if not math.isnan(report.error_auroc):
        ranked = [
            f"{measure_name(report, by)} {found.error_auroc:.3f}"
            for by, found in report.reliabilities.items()
        ]
        lines += [f"AUROC for mistakes: {', '.join(ranked)}", best_words(report)]
    if report.setting.get("plan"):
        plan = report.setting["plan"]
        lines.append(f"encoded in {plan['precision']} on {plan['device']}")
    if report.skipped:
        lines.append(f"{len(report.skipped)} images were skipped")
    times = _timing_lines(report)
    return "\n".join([*lines, "", *_class_lines(report), *(["", *times] if times else [])])


def as_markdown(report: EvaluationReport) -> str:
    """Return a report as Markdown with tables in GitHub's form; names of classes are escaped."""
    classes = [
        [
            row["class"],
            *(_percent(row[name]) for name in ("precision", "recall", "f1")),
            row["support"],
        ]
        for row in listed_classes(report)[0]
    ]
    more = listed_classes(report)[1]
    pairs = [
        [row["true"], row["answer"], row["count"], _percent(row["share"])]
        for row in report.confused_pairs(PAIRS)
    ]
    by = shown_measure(report)
    deciles = [
        [
            row["decile"],
            *(value_words(by, row[end]) for end in ("min", "max")),
            row["count"],
            _percent(row["accuracy"]),
        ]
        for row in report.reliability(by).deciles
    ]
    times = [
        [name.replace("_", " "), f"{timing.seconds.get(part, 0.0):.2f}", _rate(timing.rate(part))]
        for name, part, timing in timed_parts(report)
    ]
    sections = [
        "# Evaluation",
        markdown_table(("measure", "value"), summary_rows(report)),
        "## Setting",
        markdown_table(("setting", "value"), setting_rows(report)),
        "## Classes",
        markdown_table(("class", "precision", "recall", "F1", "images"), classes),
        *([more] if more else []),
    ]
    if pairs:
        sections += ["## Most confused", markdown_table(("true", "answer", "count", "of the class"), pairs)]
    sections += [
        "## Confidence",
        markdown_table(MEASURE_HEAD, measure_rows(report)),
        best_words(report),
        f"## Accuracy by {measure_name(report, by)}",
        markdown_table(("tenth, the surest first", "from", "to", "images", "accuracy"), deciles),
    ]
    if times:
        sections += ["## Time", markdown_table(("part", "seconds", "images/s"), times)]
    return "\n\n".join(sections)


def summary_rows(report: EvaluationReport) -> list[tuple[str, str]]:
    """Return the names and the values of the figures that tell the most."""
    low, high = report.accuracy_interval
    rows = [
        ("accuracy", _percent(report.accuracy)),
        ("95 % interval", f"{low:.2%} to {high:.2%}"),
        ("correct answers", f"{int(report.correct.sum()):,} of {report.n_test:,}"),
        ("balanced accuracy", _percent(report.macro["balanced_accuracy"])),
        ("macro F1", _percent(report.macro["macro_f1"])),
    ]
    if report.best_measure is not None:
        auroc = report.reliability(report.best_measure).error_auroc
        rows.append(("ranks mistakes best here", f"{report.best_measure}, AUROC {auroc:.4f}"))
    if report.calibration is not None:
        rows.append(("expected calibration error", f"{report.calibration.ece:.4f}"))
    if report.skipped:
        rows.append(("images skipped", f"{len(report.skipped):,}"))
    return rows


MEASURE_HEAD = ("measure", "AUROC for mistakes", "area under risk-coverage")


def measure_rows(report: EvaluationReport) -> list[tuple[str, str, str]]:
    """Return each measure of confidence with how well it ranks the mistakes, as `MEASURE_HEAD` names it."""
    return [
        (
            measure_axis(report, by) + (", the same for all" if found.constant else ""),
            "-" if math.isnan(found.error_auroc) else f"{found.error_auroc:.4f}",
            f"{found.risk_coverage.area:.4f}",
        )
        for by, found in report.reliabilities.items()
    ]


def setting_rows(report: EvaluationReport) -> list[tuple[str, str]]:
    """Return the names and the values of the settings that are known, the path of a model readable."""
    named = {"n_train": "stored vectors", "dim": "dimension"}
    absent = {"k", "weights", "n_train"} if report.setting.get("n_train") == 0 else set()
    known = [(name, report.setting.get(name)) for name in _SETTINGS if name not in absent]
    rows = [(named.get(name, name), readable(value)) for name, value in known if value is not None]
    if report.setting.get("plan"):
        plan = report.setting["plan"]
        rows.append(("encoded", f"in {plan['precision']} on {plan['device']}"))
    return rows


def listed_classes(report: EvaluationReport) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of `per_class` that readers are shown, and a sentence on the others, if any."""
    rows = report.per_class
    if len(rows) <= CLASSES:
        return rows, ""
    worst = np.argsort(-report._confusion.mistakes, kind="stable")[:CLASSES]
    told = (
        f"The {CLASSES:,} classes with the most incorrect answers, of {len(rows):,}; the JSON report has all."
    )
    return [rows[place] for place in sorted(worst.tolist())], told


def _class_lines(report: EvaluationReport) -> list[str]:
    per_class, more = listed_classes(report)
    names = [shortened(row["class"], LONGEST) for row in per_class]
    width = max(5, *map(len, names))
    rows = [f"{'class':<{width}} {'precision':>9} {'recall':>7} {'f1':>7} {'support':>8}"]
    rows += [
        f"{name:<{width}} {row['precision']:>9.4f} {row['recall']:>7.4f} "
        f"{row['f1']:>7.4f} {row['support']:>8d}"
        for name, row in zip(names, per_class, strict=True)
    ]
    return [*rows, more] if more else rows


def _timing_lines(report: EvaluationReport) -> list[str]:
    rows = []
    for name, part, timing in timed_parts(report):
        seconds, rate = timing.seconds.get(part, 0.0), _rate(timing.rate(part))
        rows.append(f"{name.replace('_', ' '):<12} {seconds:>9.2f} {rate:>9}")
    return [f"{'time':<12} {'seconds':>9} {'images/s':>9}", *rows] if rows else []


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}"


def _median(distances: FloatArray) -> str:
    return f"{np.median(distances):.4g}" if len(distances) else "-"
