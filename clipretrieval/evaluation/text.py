"""An evaluation report as text, as Markdown, and as a small piece of HTML for notebooks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from clipretrieval._util.tables import html_paragraph, html_table, markdown_table, number_cell
from clipretrieval._util.text import readable, shortened
from clipretrieval.evaluation.figures import Figures, timed_parts
from clipretrieval.evaluation.words import (
    best_words,
    counts_votes,
    distance_axis,
    head_words,
    measure_axis,
    measure_name,
    shown_measure,
    value_words,
)
from clipretrieval.types import FloatArray

__all__ = [
    *("MEASURE_HEAD", "measure_rows", "notebook_html", "report_markdown", "report_text", "setting_rows"),
    *("shown_classes", "summary_rows"),
]

CLASSES = 1000
"""The most classes that a reader is shown; JSON has all."""

NOTEBOOK_CLASSES = 20
"""The most classes that a notebook shows."""

LONGEST = 60
"""The most letters of a class's name in text, which is aligned to the longest."""

PAIRS = 20
"""The most pairs of confused classes that Markdown lists."""

_SETTINGS = ("model", "pretrained", "stage", "dim", "store", "metric", "head", "k", "weights", "n_train")


def report_text(report: Figures) -> str:
    """Return a report as aligned text."""
    low, high = report.accuracy_interval
    s = {name: report.setting.get(name) for name in _SETTINGS}
    shown = {name: "-" if value is None else value for name, value in s.items()}
    correct, incorrect = report.distances[report.correct], report.distances[~report.correct]
    lines = [
        f"accuracy {report.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"{int(report.correct.sum())} of {report.n_test} images",
        "model {model}, stage {stage}, dim {dim}; store {store}, metric {metric}".format(**shown)
        # A zero-shot answer rests on prompts: nothing is stored, and no head decides.
        + (f", {head_words(report)}, {s['n_train']} stored vectors" if s["n_train"] else ""),
        f"median {distance_axis(report)}: correct {_median(correct)}, incorrect {_median(incorrect)}",
    ]
    if not math.isnan(report.error_auroc):
        ranked = [
            f"{measure_name(report, by)} {found.error_auroc:.3f}"
            for by, found in report.reliabilities.items()
        ]
        lines += [f"AUROC for mistakes: {', '.join(ranked)}", best_words(report)]
    lines += [f"{name}: {value}" for name, value in _trust_rows(report)]
    if report.setting.get("plan"):
        plan = report.setting["plan"]
        lines.append(f"encoded in {plan['precision']} on {plan['device']}")
    if report.skipped:
        lines.append(f"{len(report.skipped)} images were skipped")
    lines += ["", *_class_lines(report)]
    times = _timing_rows(report)
    if times:
        columns = [("time", "seconds", "images/s"), *times]
        lines += ["", *(f"{name:<12} {seconds:>9} {rate:>9}" for name, seconds, rate in columns)]
    return "\n".join(lines)


def report_markdown(report: Figures) -> str:
    """Return a report as Markdown with tables in GitHub's form; names of classes are escaped."""
    classes, more = shown_classes(report)
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
    times = _timing_rows(report)
    sections = [
        "# Evaluation",
        markdown_table(("measure", "value"), summary_rows(report)),
        "## Setting",
        markdown_table(("setting", "value"), setting_rows(report)),
        "## Classes",
        markdown_table(CLASS_HEAD, map(_class_row, classes)),
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


def notebook_html(report: Figures) -> str:
    """Return the figures, the measures of confidence and the classes: no scripts, nothing from elsewhere."""
    classes = report.per_class[:NOTEBOOK_CLASSES]
    more = len(report.per_class) - len(classes)
    parts = [
        html_table(("measure", "value"), summary_rows(report)),
        html_table(MEASURE_HEAD, measure_rows(report)),
        html_paragraph(best_words(report)),
        html_table(CLASS_HEAD, map(_class_row, classes)),
        *([html_paragraph(f"and {more:,} more classes")] if more else []),
        html_paragraph("report.to_html(path) writes the whole page."),
    ]
    return f"<div>{''.join(parts)}</div>"


def summary_rows(report: Figures) -> list[tuple[str, str]]:
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
    if report.calibration is not None and report.ece_before is None:
        rows.append((CALIBRATION_ERROR, f"{report.calibration.ece:.4f}"))
    rows += _trust_rows(report)
    if report.skipped:
        rows.append(("images skipped", f"{len(report.skipped):,}"))
    return rows


def _trust_rows(report: Figures) -> list[tuple[str, str]]:
    """Return the names and the values of what was learned of held-out images, and of unknown ones."""
    rows, unknown = [], report.unknown
    if report.calibration is not None and report.ece_before is not None:
        rows.append(
            (CALIBRATION_ERROR, f"{report.calibration.ece:.4f}, before calibrating {report.ece_before:.4f}")
        )
    if unknown is not None:
        rows.append(("AUROC for unknown images", f"{unknown.auroc:.4f} ({unknown.n:,} images)"))
        if unknown.known_turned_away is not None and unknown.unknown_turned_away is not None:
            shares = _percent(unknown.known_turned_away), _percent(unknown.unknown_turned_away)
            rows.append(("turned away", f"{shares[0]} of known images, {shares[1]} of unknown ones"))
    return rows


CALIBRATION_ERROR = "expected calibration error"
CLASS_HEAD = ("class", "precision", "recall", "F1", "images")
MEASURE_HEAD = ("measure", "AUROC for mistakes", "area under risk-coverage")


def measure_rows(report: Figures) -> list[tuple[str, str, str]]:
    """Return each measure of confidence with how well it ranks the mistakes, as `MEASURE_HEAD` names it."""
    return [
        (
            measure_axis(report, by) + (", the same for all" if found.constant else ""),
            "-" if math.isnan(found.error_auroc) else f"{found.error_auroc:.4f}",
            f"{found.risk_coverage.area:.4f}",
        )
        for by, found in report.reliabilities.items()
    ]


def setting_rows(report: Figures) -> list[tuple[str, str]]:
    """Return the names and the values of the settings that are known, the path of a model readable."""
    named = {"n_train": "stored vectors", "dim": "dimension"}
    absent = {"head", "k", "weights", "n_train"} if report.setting.get("n_train") == 0 else set()
    if counts_votes(report):
        absent.add("head")  # k and weights say so
    known = [(name, report.setting.get(name)) for name in _SETTINGS if name not in absent]
    rows = [(named.get(name, name), readable(value)) for name, value in known if value is not None]
    if report.setting.get("plan"):
        plan = report.setting["plan"]
        rows.append(("encoded", f"in {plan['precision']} on {plan['device']}"))
    return rows


def shown_classes(report: Figures) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of `per_class` that readers are shown, and a sentence on the others, if any."""
    rows = report.per_class
    if len(rows) <= CLASSES:
        return rows, ""
    worst = np.argsort(-report._confusion.mistakes, kind="stable")[:CLASSES]
    told = (
        f"The {CLASSES:,} classes with the most incorrect answers, of {len(rows):,}; the JSON report has all."
    )
    return [rows[place] for place in sorted(worst.tolist())], told


def _class_row(row: dict[str, Any]) -> list[Any]:
    """Return what tables with `CLASS_HEAD` show of a row of `per_class`."""
    return [row["class"], *(_percent(row[name]) for name in ("precision", "recall", "f1")), row["support"]]


def _class_lines(report: Figures) -> list[str]:
    per_class, more = shown_classes(report)
    names = [shortened(row["class"], LONGEST) for row in per_class]
    width = max(5, *map(len, names))
    rows = [f"{'class':<{width}} {'precision':>9} {'recall':>7} {'f1':>7} {'support':>8}"]
    rows += [
        f"{name:<{width}} {row['precision']:>9.4f} {row['recall']:>7.4f} "
        f"{row['f1']:>7.4f} {row['support']:>8d}"
        for name, row in zip(names, per_class, strict=True)
    ]
    return [*rows, more] if more else rows


def _timing_rows(report: Figures) -> list[tuple[str, str, str]]:
    rows = []
    for name, part, timing in timed_parts(report):
        seconds, rate = timing.seconds.get(part, 0.0), timing.rate(part)
        rows.append((name.replace("_", " "), f"{seconds:.2f}", number_cell(rate, ".1f")))
    return rows


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _median(distances: FloatArray) -> str:
    return f"{np.median(distances):.4g}" if len(distances) else "-"
