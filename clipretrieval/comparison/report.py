"""What a comparison of stages, stores and CLIP itself found, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipretrieval._util.repr import short_repr
from clipretrieval._util.timing import Timing
from clipretrieval.comparison.speed import Speed
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.evaluation.significance import McNemar
from clipretrieval.evaluation.writing import written
from clipretrieval.images.stream import SkippedImage

__all__ = ["COMPARISON_SCHEMA", "ZERO_SHOT", "ComparisonReport", "ComparisonRow"]

COMPARISON_SCHEMA = 1
ZERO_SHOT = "zero-shot"


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
        Of the vectors that are searched, in float32; what an index keeps besides is not counted.
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
            **{key: report.setting[key] for key in ("stage", "store", "metric", "k", "weights", "dim")},
            "accuracy": report.accuracy,
            "low": low,
            "high": high,
            "n": report.n_test,
            "p_value": test.p_value if test else None,
            "gained": test.gained if test else None,
            "lost": test.lost if test else None,
            **self.speed.to_dict(),
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
        The zero-shot answer first where there is one, then stage by stage.
    baseline : str
        The name of the row that McNemar's test compares with.
    n_train, n_test : int
        Images fitted on, and classified.
    timed_images : int
        Images that `seconds per 1,000` were measured on.
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
            ``n_skipped``, ``timed_images``, ``rows`` (see `ComparisonRow.to_dict`), ``open_clip``,
            ``seconds`` and ``reports``: those of the rows, by their names.
        """
        return {
            "schema_version": COMPARISON_SCHEMA,
            "kind": "comparison",
            "baseline": self.baseline,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "n_skipped": len(self.skipped),
            "timed_images": self.timed_images,
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
        return written(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the table with its explanation as Markdown, and write it to `path` if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        from clipretrieval.comparison.views import as_markdown

        return written(path, as_markdown(self))

    def to_html(self, path: str | Path | None = None, *, title: str | None = None) -> str:
        """Return the table and each row's report as one HTML page, and write it to `path` if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        MissingDependencyError
            If jinja2 is not installed.
        """
        from clipretrieval.comparison.views import as_html

        return written(path, as_html(self, title=title))

    def __str__(self) -> str:
        from clipretrieval.comparison.views import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return short_repr(self, rows=len(self.rows), n_train=self.n_train, n_test=self.n_test)

    def _repr_html_(self) -> str:
        from clipretrieval.evaluation.notebook import comparison_html

        return comparison_html(self)
