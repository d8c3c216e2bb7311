"""What a comparison of stages, stores and CLIP itself found, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipretrieval._util.files import write_report
from clipretrieval._util.repr import short_repr
from clipretrieval._util.tables import aligned_table, html_paragraph, html_table, markdown_table, number_cell
from clipretrieval._util.text import json_document
from clipretrieval._util.timing import Timing
from clipretrieval.cascade.calibration import Calibration
from clipretrieval.cascade.cascade_report import CascadeReport
from clipretrieval.comparison.speed import OPEN_CLIP_BATCH, Speed
from clipretrieval.evaluation.metrics import McNemar
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.images.stream import SkippedImage

if TYPE_CHECKING:
    from clipretrieval.evaluation.page.parts import PageTable

__all__ = ["COMPARISON_SCHEMA", "ZERO_SHOT", "ComparisonReport", "ComparisonRow", "comparison_page"]

COMPARISON_SCHEMA = 1
ZERO_SHOT = "zero-shot"

_SETTINGS = ("stage", "store", "metric", "head", "k", "weights", "dim")
"""Of a report, that stand in its row too."""
_HEAD = (
    *("classifier", "accuracy", "95 % interval", "p (McNemar)", "10⁹ multiply-adds"),
    *("inference s", "query s", "total s", "p50 ms", "p95 ms", "dim", "MB", "× CLIP", "× open_clip"),
)


@dataclass(frozen=True, eq=False)
class ComparisonRow:
    """One of the classifiers that were compared.

    Attributes
    ----------
    name : str
        Unique within the comparison.
    report : EvaluationReport
        Of its answers to all test images.
    speed : Speed
    bytes : int
        Of the vectors that are searched, in float32, and 0 where a head searches none; what an index keeps
        besides is not counted.
    multiply_adds : float or None
        Of the encoder, in 10⁹ for an image; a cascade's mean over the test images.
    calibration : Calibration or None
        Of a cascade, whose `report` is a `~clipretrieval.cascade.CascadeReport`.
    trained : bool
        Whether it is a linear probe: a reference that was trained on the training images' vectors.
    mcnemar : McNemar or None
        Against the baseline; None for the baseline itself.
    speedup : float or None
        Time of whole CLIP on the same engine divided by this one's; None where CLIP was not measured.
    speedup_open_clip : float or None
        Likewise of open_clip as it comes.
    """

    name: str
    report: EvaluationReport
    speed: Speed
    bytes: int
    multiply_adds: float | None = None
    calibration: Calibration | None = None
    trained: bool = False
    mcnemar: McNemar | None = None
    speedup: float | None = None
    speedup_open_clip: float | None = None

    def __repr__(self) -> str:
        return short_repr(
            self, name=self.name, accuracy=self.report.accuracy, total_s_per_1000=self.speed.total_s
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the table as JSON values."""
        report, (low, high), test = self.report, self.report.accuracy_interval, self.mcnemar
        return {
            "name": self.name,
            **{key: report.setting.get(key) for key in _SETTINGS},
            "accuracy": report.accuracy,
            "low": low,
            "high": high,
            "n": report.n_test,
            "p_value": test.p_value if test else None,
            "gained": test.gained if test else None,
            "lost": test.lost if test else None,
            **self.speed.to_dict(),
            "multiply_adds": self.multiply_adds,
            "exits": [{"stage": each.stage, "share": each.share} for each in report.exits]
            if isinstance(report, CascadeReport)
            else None,
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "trained": self.trained,
            "bytes": self.bytes,
            "speedup_same_engine": self.speedup,
            "speedup_open_clip": self.speedup_open_clip,
        }


@dataclass(frozen=True, eq=False)
class ComparisonReport:
    """Classifiers on the same test images: how right, how fast, how large.

    Attributes
    ----------
    rows : tuple of ComparisonRow
        The zero-shot answer first where there is one, then stage by stage, then the cascades, then the
        linear probes.
    baseline : str
        The name of the row that McNemar's test compares with.
    n_train, n_test : int
        Images fitted on, and classified.
    n_calibration : int
        Training images that were held out, to calibrate cascades on.
    timed_images, single_images : int
        Images that `seconds per 1,000`, and latencies, were measured on.
    open_clip : Speed or None
        Of open_clip's image tower as it comes.
    fit_timing : Timing
        Of the one pass over the training images.
    seconds : mapping
        Wall times of ``"fit"``, ``"encode_test"``, ``"answer"``, ``"measure"`` and ``"total"``.
    skipped : tuple of SkippedImage
        Test images that were skipped, behind training ones.
    """

    rows: tuple[ComparisonRow, ...]
    baseline: str
    n_train: int
    n_test: int
    timed_images: int
    single_images: int = 0
    n_calibration: int = 0
    open_clip: Speed | None = None
    fit_timing: Timing = field(default_factory=Timing)
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[SkippedImage, ...] = ()

    def __getitem__(self, name: str) -> ComparisonRow:
        """Return the row called `name`; a KeyError lists the names."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} is none of {', '.join(row.name for row in self.rows)}")

    @property
    def reports(self) -> dict[str, EvaluationReport]:
        """Each row's whole report, by the row's name."""
        return {row.name: row.report for row in self.rows}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns
        -------
        dict
            ``schema_version``, ``kind`` (``"comparison"``), ``baseline``, ``n_train``, ``n_test``,
            ``n_skipped``, ``n_calibration``, ``timed_images``, ``single_images``, ``rows`` (see
            `ComparisonRow.to_dict`), ``open_clip``, ``seconds`` and ``reports``: those of the rows, by their
            names.
        """
        return {
            "schema_version": COMPARISON_SCHEMA,
            "kind": "comparison",
            "baseline": self.baseline,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "n_skipped": len(self.skipped),
            "n_calibration": self.n_calibration,
            "timed_images": self.timed_images,
            "single_images": self.single_images,
            "rows": [row.to_dict() for row in self.rows],
            "open_clip": self.open_clip.to_dict() if self.open_clip else None,
            "seconds": dict(self.seconds),
            "reports": {name: report.to_dict() for name, report in self.reports.items()},
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return `to_dict` as JSON, and write it to `path`, atomically, if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        return write_report(path, json_document(self.to_dict(), 2))

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the table with its explanation as Markdown, and write it to `path` if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        notes = "\n".join(f"- {note}" for note in _notes(self))
        table = markdown_table(_HEAD, map(_comparison_cells, self.rows), numbers=True)
        return write_report(path, f"# Comparison\n\n{table}\n\n{notes}")

    def to_html(self, path: str | Path | None = None, *, title: str | None = None) -> str:
        """Return the table and each row's report as one HTML page, and write it to `path` if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        return write_report(path, comparison_page(self, title=title))

    def __str__(self) -> str:
        return "\n".join([*aligned_table([_HEAD, *map(_comparison_cells, self.rows)]), "", *_notes(self)])

    def __repr__(self) -> str:
        return short_repr(self, rows=len(self.rows), n_train=self.n_train, n_test=self.n_test)

    def _repr_html_(self) -> str:
        note = f"{self.n_test:,} images classified; report.to_html(path) writes the whole page."
        return f"<div>{html_table(_HEAD, map(_comparison_cells, self.rows))}{html_paragraph(note)}</div>"


def comparison_page(
    report: ComparisonReport,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
    tables: Sequence[PageTable] = (),
) -> str:
    """Return a comparison as one HTML page, with each row's report behind the table.

    Parameters
    ----------
    report : ComparisonReport
    title, notes, tables
        As for `render_page`.
    """
    from clipretrieval.evaluation.page.render import render_page

    rows = [row.to_dict() for row in report.rows]
    exits = [
        row.report.exits_table(f"Exits of {row.name}")
        for row in report.rows
        if isinstance(row.report, CascadeReport)
    ]
    return render_page(
        report.reports,
        comparison=rows,
        tables=[*tables, *exits],
        title=title,
        notes=notes,
        remarks=_notes(report),
    )


def _comparison_cells(row: ComparisonRow) -> list[str]:
    found = row.to_dict()
    return [
        row.name,
        f"{found['accuracy']:.2%}",
        f"{found['low']:.2%} to {found['high']:.2%}",
        "< 1e-300" if found["p_value"] == 0 else number_cell(found["p_value"], ".2g"),
        number_cell(found["multiply_adds"], ".4g"),
        f"{found['inference_s_per_1000']:.2f}",
        f"{found['query_s_per_1000']:.2f}",
        f"{found['total_s_per_1000']:.2f}",
        number_cell(found["p50_ms"], ".1f"),
        number_cell(found["p95_ms"], ".1f"),
        str(found["dim"]),
        f"{found['bytes'] / 1e6:.1f}",
        number_cell(found["speedup_same_engine"], ".2f"),
        number_cell(found["speedup_open_clip"], ".2f"),
    ]


def _notes(report: ComparisonReport) -> list[str]:
    notes = [
        f"fitted on {report.n_train} images, {report.n_test} classified; intervals are Wilson's, p is of "
        f"McNemar's exact test against {report.baseline}",
        f"seconds per 1,000 images, measured on {report.timed_images} of the test images together; p50 and "
        f"p95 are of {report.single_images} single images, from image to answer",
        "× CLIP: whole CLIP's time on the same engine divided by the row's; × open_clip: that of open_clip "
        f"as it comes, float32 by batches of {OPEN_CLIP_BATCH}"
        + (f", {report.open_clip.total_s:.2f} s" if report.open_clip else ", not measured"),
    ]
    plan = next((row.report.setting["plan"] for row in report.rows if row.report.setting["plan"]), None)
    if plan:
        notes.append(f"encoded in {plan['precision']} on {plan['device']}")
    notes += [
        _cascade_note(row.name, row.report, row.calibration)
        for row in report.rows
        if isinstance(row.report, CascadeReport) and row.calibration is not None
    ]
    notes += [_probe_note(row) for row in report.rows if row.trained]
    if report.skipped:
        notes.append(f"{len(report.skipped)} images were skipped")
    return notes


def _probe_note(row: ComparisonRow) -> str:
    setting = row.report.setting
    chosen = f"by {setting['folds']}-fold cross-validation on them alone" if setting["folds"] else "untried"
    return (
        f"{row.name}: a reference, which was trained on the vectors of the {setting['n_train']} images that "
        f"others store: logistic regression, C = {setting['C']:g} {chosen}"
    )


def _cascade_note(name: str, report: CascadeReport, calibration: Calibration) -> str:
    left = ", ".join(f"{each.share:.1%} at {each.stage}" for each in report.exits)
    promise = (
        f"at most {calibration.max_loss:.2%} below always {report.stages[-1]}, with a confidence of "
        f"{calibration.confidence:.4g}"
        if calibration.max_loss is not None
        else f"{calibration.budget:.4g} · 10⁹ multiply-adds on average"
    )
    return f"{name}: left {left}; calibrated on {calibration.n} images held out of training, to {promise}"
