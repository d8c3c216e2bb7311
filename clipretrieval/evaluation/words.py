"""What reports call a classifier's measures of confidence and its distances, and how they write numbers."""

from __future__ import annotations

import math

from clipretrieval.evaluation.figures import Figures

__all__ = [
    *("PROMPTS", "best_words", "counts_votes", "distance_axis", "distance_unit", "head_words"),
    *("measure_axis", "measure_name", "number_words", "shown_measure", "threshold_words", "value_words"),
]

PROMPTS = "prompts"
"""What the setting of a zero-shot report has in the place of a store."""

_DISTANCES = {"l2": "squared Euclidean distance", "cosine": "cosine distance", "ip": "negative inner product"}


def distance_unit(report: Figures) -> str:
    """Return what a report's distances are."""
    return _DISTANCES.get(str(report.setting.get("metric")), "distance")


def distance_axis(report: Figures) -> str:
    """Return what a report's distances are, and to what."""
    joint = "with" if report.setting.get("metric") == "ip" else "to"
    return f"{distance_unit(report)} {joint} the nearest {'prompt' if _zero_shot(report) else 'neighbor'}"


def measure_name(report: Figures, by: str) -> str:
    """Return what a measure is called beside the others."""
    return ("share of the votes" if counts_votes(report) else "probability") if by == "share" else by


def measure_axis(report: Figures, by: str) -> str:
    """Return what a chart's axis of a measure is called."""
    if by == "distance":
        return distance_axis(report)
    if by == "margin":
        return "margin to the second class"
    return measure_name(report, by)


def number_words(value: float) -> str:
    """Write a number in few digits, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e7 or abs(value) < 1e-4:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def value_words(by: str, value: float | None) -> str:
    """Write the value of a measure: shares and margins as percentages."""
    if value is None or not math.isfinite(value):
        return "any"
    return number_words(value) if by == "distance" else f"{value:.2%}"


def threshold_words(report: Figures, by: str) -> str:
    """Begin the sentence that a threshold of a measure ends."""
    if by == "distance":
        return "Keep the answers up to a distance of"
    return f"Keep the answers with a {measure_name(report, by)} of at least"


def shown_measure(report: Figures) -> str:
    """Return the measure to show first: the best one, or else the first one that tells answers apart."""
    varied = [by for by, found in report.reliabilities.items() if not found.constant]
    return report.best_measure or next(iter(varied), "distance")


def best_words(report: Figures) -> str:
    """Say which measure ranks the mistakes best, and what that is worth."""
    if report.correct.all():
        return "No answer is incorrect, so there is nothing to rank."
    if not report.correct.any():
        return "No answer is correct, so there is nothing to rank."
    if report.best_measure is None:
        return "On these images no measure ranks the mistakes better than chance."
    return (
        f"On these images the {measure_name(report, report.best_measure)} ranks the mistakes best. It was "
        "chosen on the same images: a description, and no promise for others."
    )


def counts_votes(report: Figures) -> bool:
    """Tell whether a report's answers are those of neighbors that voted."""
    return not _zero_shot(report) and report.setting.get("head", "votes") == "votes"


def head_words(report: Figures) -> str:
    """Say what has decided, such as ``k 1, weights uniform``; nothing of a zero-shot answer."""
    setting = report.setting
    known = {name: "-" if setting.get(name) is None else setting[name] for name in ("k", "weights")}
    if _zero_shot(report):
        return ""
    if counts_votes(report):
        return "k {k}, weights {weights}".format(**known)
    return f"head {setting['head']}" + (f", k {setting['k']}" if setting.get("k") else "")


def _zero_shot(report: Figures) -> bool:
    return report.setting.get("store") == PROMPTS
