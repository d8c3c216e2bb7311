"""What the evaluation of a cascade found: its answers, and what each exit let go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.files import write_report
from clipretrieval._util.tables import aligned_table, markdown_table
from clipretrieval.cascade.exit_policy import THRESHOLDS, ExitEvidence, ExitPolicy
from clipretrieval.evaluation.metrics import wilson_interval
from clipretrieval.evaluation.report import EvaluationReport

if TYPE_CHECKING:
    from clipretrieval.evaluation.page.parts import PageTable

__all__ = ["CascadeReport", "ExitFigures"]

_COLUMNS = (
    ("stage", "exit"),
    ("left", "left there"),
    ("share", "share"),
    ("accuracy", "accuracy of these"),
    ("both", "correct here and last"),
    ("only_here", "only here"),
    ("only_last", "only last"),
    ("neither", "neither"),
    ("accuracy_alone", "accuracy of all"),
    ("multiply_adds", "10⁹ multiply-adds"),
    ("image_ms", "ms an image"),
)
"""Fields of `ExitFigures`, and what tables call them."""
_NOTE = (
    "How many images left at each exit, and how accurate its answers to them were. Beside the last exit's "
    "answers to the same images: how many both have correct, only one of the two, or neither. Then the "
    "accuracy if all images had stopped there, and what an image costs that leaves there."
)


@dataclass(frozen=True)
class ExitFigures:
    """What one exit of a cascade did.

    Attributes
    ----------
    stage : str
    left : int
        Images that left there.
    share : float
        Of all images, in [0, 1].
    accuracy : float or None
        Of those that left there; None where none did.
    both, only_here, only_last, neither : int or None
        Of those that left there: how many this exit and the last one would both have answered correctly, only
        one of the two, or neither. None where the last exit was not asked.
    accuracy_alone : float or None
        Of all images, had all stopped there; None where the last exit was not asked.
    multiply_adds : float
        In 10⁹, of an image that leaves there.
    image_ms : float
        Milliseconds of an image that leaves there: the pass's wall time, divided as the work was.
    """

    stage: str
    left: int
    share: float
    accuracy: float | None
    both: int | None
    only_here: int | None
    only_last: int | None
    neither: int | None
    accuracy_alone: float | None
    multiply_adds: float
    image_ms: float


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CascadeReport(EvaluationReport):
    """A cascade's answers on labeled images, and what each exit let go.

    All of ``EvaluationReport``, whose texts and pages have a table of the exits more.

    Attributes
    ----------
    stages : tuple of str
    places : ndarray of int64, shape (n_test,)
        The number of the exit where each image left.
    multiply_adds : tuple of float
        In 10⁹, of an image that leaves at each exit.
    image_ms : tuple of float
        See `ExitFigures`.
    policy : ExitPolicy
    evidence : ExitEvidence or None
        What all exits said of all images, where they were asked.
    """

    stages: tuple[str, ...]
    places: npt.NDArray[np.int64]
    multiply_adds: tuple[float, ...]
    image_ms: tuple[float, ...]
    policy: ExitPolicy
    evidence: ExitEvidence | None = None

    @property
    def mean_multiply_adds(self) -> float:
        """Of an image on average, in 10⁹."""
        return float(np.array(self.multiply_adds)[self.places].mean())

    @property
    def arithmetic(self) -> float:
        """The share of the last exit's arithmetic that was done, in (0, 1]."""
        return self.mean_multiply_adds / self.multiply_adds[-1]

    @property
    def loss(self) -> float | None:
        """The last exit's accuracy less the cascade's; None where the last exit was not asked."""
        return None if self.evidence is None else float(self.evidence.correct[-1].mean()) - self.accuracy

    @cached_property
    def exits(self) -> tuple[ExitFigures, ...]:
        """What each exit did."""
        return tuple(self._exit(place) for place in range(len(self.stages)))

    def _exit(self, place: int) -> ExitFigures:
        left = self.places == place
        figures = ExitFigures(
            stage=self.stages[place],
            left=int(left.sum()),
            share=float(left.mean()),
            accuracy=float(self.correct[left].mean()) if left.any() else None,
            both=None,
            only_here=None,
            only_last=None,
            neither=None,
            accuracy_alone=None,
            multiply_adds=self.multiply_adds[place],
            image_ms=self.image_ms[place],
        )
        if self.evidence is None:
            return figures
        all_ = self.evidence.correct[place]
        here, last = all_[left], self.evidence.correct[-1][left]
        return replace(
            figures,
            both=int(np.count_nonzero(here & last)),
            only_here=int(np.count_nonzero(here & ~last)),
            only_last=int(np.count_nonzero(~here & last)),
            neither=int(np.count_nonzero(~here & ~last)),
            accuracy_alone=float(all_.mean()),
        )

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The accuracy at each cost that this policy can have, on these images; empty where not known.

        Each point has ``threshold``, ``multiply_adds`` (the mean, in 10⁹) and ``accuracy``. Points that
        another one beats at no more cost are among them.
        """
        evidence = self.evidence
        if evidence is None:
            return []
        found, costs = dict[bytes, dict[str, float]](), np.array(self.multiply_adds)
        for threshold in [None, *THRESHOLDS.tolist()]:
            places = self.policy.at(threshold).exits(evidence)
            accuracy = float(evidence.correct[places, np.arange(len(evidence))].mean())
            point = {"multiply_adds": float(costs[places].mean()), "accuracy": accuracy}
            found.setdefault(
                places.tobytes(), {"threshold": -np.inf if threshold is None else threshold, **point}
            )
        return sorted(found.values(), key=lambda point: point["multiply_adds"])

    def _columns(self) -> dict[str, Any]:
        """Return the single answers by column, with the stage where each image left."""
        return {**super()._columns(), "stage": [self.stages[place] for place in self.places]}

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single answers as JSON values."""
        return {
            **super().to_dict(),
            "cascade": {
                "loss": self.loss,
                "multiply_adds": self.mean_multiply_adds,
                "arithmetic": self.arithmetic,
                "exits": [vars(each).copy() for each in self.exits],
                "curve": [
                    {**point, "threshold": point["threshold"] if np.isfinite(point["threshold"]) else None}
                    for point in self.curve
                ],
            },
        }

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the report as Markdown, and write it to `path`, atomically, if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        heads = [head for _, head in _COLUMNS]
        table = markdown_table(heads, map(_cells, self.exits), numbers=True)
        return write_report(path, "\n\n".join([super().to_markdown(), "## Exits", table, self._summary()]))

    def to_html(
        self, path: str | Path | None = None, *, title: str | None = None, pictures: bool = True
    ) -> str:
        """Return the report as one HTML page that needs nothing else, and write it to `path` if one is given.

        The table of the exits comes first, below the curve of accuracy over arithmetic. Parameters and errors
        are those of ``EvaluationReport.to_html``.
        """
        from clipretrieval.evaluation.page.render import render_page

        tables = [self.exits_table("Exits")]
        page = render_page([("Answers", self)], tables=tables, title=title or "Evaluation", pictures=pictures)
        return write_report(path, page)

    def exits_table(self, title: str) -> PageTable:
        """Return the exits as a page shows them, with the curve where there is one."""
        from clipretrieval.evaluation.page.parts import PageTable
        from clipretrieval.evaluation.page.svg import exits_chart

        rows = [vars(each) for each in self.exits]
        chart = exits_chart(self.curve, self._points()) if self.curve else None
        note = self._summary() if self.evidence is None else f"{self._summary()} {_NOTE}"
        return PageTable(title, _COLUMNS, rows, note, chart)

    def _points(self) -> list[dict[str, Any]]:
        """Return what the chart shows beside the curve: each stage alone, and the cascade."""
        n = self.n_test
        found: list[dict[str, Any]] = []
        for each in self.exits:
            if each.accuracy_alone is not None:
                low, high = wilson_interval(round(each.accuracy_alone * n), n)
                ends = {"low": low, "high": high}
                found.append(
                    {"name": each.stage, "accuracy": each.accuracy_alone, "cost": each.multiply_adds, **ends}
                )
        low, high = self.accuracy_interval
        own = {"name": "cascade", "accuracy": self.accuracy, "cost": self.mean_multiply_adds}
        return [*found, {**own, "low": low, "high": high}]

    def _summary(self) -> str:
        told = (
            f"{self.mean_multiply_adds:.3g} · 10⁹ multiply-adds an image, {self.arithmetic:.2f} of those of "
            f"always {self.stages[-1]}"
        )
        return f"{told}." if self.loss is None else f"{told}; accuracy lost by it: {self.loss:.2%}."

    def __str__(self) -> str:
        rows = [[head for _, head in _COLUMNS], *map(_cells, self.exits)]
        return "\n".join([super().__str__(), "", *aligned_table(rows), self._summary()])


def _cells(figures: ExitFigures) -> list[str]:
    """Return an exit's figures as texts."""
    return [_cell(name, getattr(figures, name)) for name, _ in _COLUMNS]


def _cell(name: str, value: str | float | None) -> str:
    if value is None:
        return "-"
    if name in ("share", "accuracy", "accuracy_alone"):
        return f"{value:.2%}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
