"""What was tried on labeled images, what is advised, and the lines of code that do it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from clipretrieval._util.files import write_report
from clipretrieval._util.repr import short_repr
from clipretrieval._util.tables import aligned_table, html_paragraph, html_table, number_cell
from clipretrieval._util.text import json_document
from clipretrieval.cascade.cascade_classifier import CascadeClassifier
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.comparison.advice import LEVEL, Wishes
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.encoding.weights.model_source import HF_HUB, LOCAL_DIR
from clipretrieval.evaluation.words import number_words
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.quadratic import Quadratic
from clipretrieval.heads.ridge import Ridge
from clipretrieval.images.stream import SkippedImage

__all__ = ["RECOMMENDATION_SCHEMA", "Recommendation"]

RECOMMENDATION_SCHEMA = 1

_HEAD = (
    *("", "stage", "pooling", "head", "accuracy", "95 % interval", "p (McNemar)", "10⁹ multiply-adds"),
    *("encode ms", "query ms"),
)
_COLUMNS = (
    *(("name", "stage, head"), ("place", "place"), ("accuracy", "accuracy"), ("low", "95 % interval, from")),
    *(("high", "to"), ("p_value", "p (McNemar)"), ("multiply_adds", "10⁹ multiply-adds")),
    *(("encode_ms", "encode, ms"), ("query_ms", "query, ms"), ("total_ms", "together, ms")),
    ("dim", "dimension"),
)
_TITLE = "Recommendation"
_HEADS = (Discriminant, Fused, Quadratic, Ridge)
_MARKS = "* advised, + on the Pareto front: no other is as accurate for as little arithmetic"
_CHART = (
    "on the Pareto front, the chart's line, are those that no other equals for as little arithmetic; the "
    "ring is advised, and whiskers are 95 % intervals"
)


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The accuracy and the cost of each candidate, and which one to take.

    Attributes
    ----------
    rows : list of dict
        One a candidate, stage by stage: ``stage``, ``pooling`` (None where there is nothing to pool),
        ``head``, ``dim``, ``accuracy`` in [0, 1], ``n`` (images that are chosen on), ``low`` and ``high``
        (its 95 % Wilson interval), ``multiply_adds`` (10⁹ for an image, with all images stored; of which
        ``head_multiply_adds`` for the head and an exact search), ``encode_ms``, ``query_ms`` and ``total_ms``
        (milliseconds for an image, measured side by side in batches of 16, medians; of a cascade the mean of
        what its exits take), ``exits`` (the share of the images that left at each exit of a cascade; None
        for others), ``p_value`` (McNemar's
        exact test against the most accurate one; None for itself), ``front`` (whether no other candidate is
        at least as accurate and at most as expensive) and ``advised``.
    place, best_place : int
        In `rows`, of what is advised, and of the most accurate one that is not too expensive.
    encoder : StagedEncoder
        Stopped at the advised stage.
    params : dict
        Arguments of `RetrievalClassifier`, or of `CascadeClassifier`, for the advised head.
    accuracy : float
        Expected of what is advised on unseen images; see the notes of `recommend`.
    interval : (low, high)
        The 95 % interval of that.
    n : int
        Images that it was measured on.
    wishes : Wishes
        ``max_cost`` and ``min_accuracy``, each None where there was none.
    met : bool
        Whether what is advised keeps to the wishes; if not, it is the nearest that was found.
    n_images, n_classes : int
        Different images, and classes.
    folds : int
    crossed : bool
        Whether every image was answered, by classifiers fitted on the other folds.
    seconds : float
        That all of it took.
    skipped : tuple of SkippedImage
    exits : tuple of str
        The stages, where a cascade is advised.
    max_loss, confidence : float
        What cascades are calibrated to.
    remarks : tuple of str
        What was left out, and why.
    images : str
        What `program` fits on, as code: the folder's name in quotes where a folder was given.
    """

    rows: list[dict[str, Any]]
    place: int
    best_place: int
    encoder: StagedEncoder
    params: dict[str, Any]
    accuracy: float
    interval: tuple[float, float]
    n: int
    wishes: Wishes
    met: bool
    n_images: int
    n_classes: int
    folds: int
    crossed: bool
    seconds: float = 0.0
    skipped: tuple[SkippedImage, ...] = field(default=())
    exits: tuple[str, ...] = ()
    max_loss: float = 0.005
    confidence: float = 0.95
    remarks: tuple[str, ...] = ()
    images: str = "images, labels"

    @property
    def advice(self) -> dict[str, Any]:
        """The advised row."""
        return self.rows[self.place]

    @property
    def best(self) -> dict[str, Any]:
        """The row of the most accurate candidate that is not too expensive; of equal ones the cheapest."""
        return self.rows[self.best_place]

    @property
    def front(self) -> list[dict[str, Any]]:
        """The rows of the Pareto front, the cheapest first."""
        return sorted((row for row in self.rows if row["front"]), key=lambda row: float(row["multiply_adds"]))

    @property
    def code(self) -> str:
        """What makes the advised classifier, as code, with the names of `clipretrieval` and its ``heads``.

        A model that was passed as a module is called ``model`` in it. See `program`.
        """
        made = "CascadeClassifier" if self.exits else "RetrievalClassifier"
        given = [_encoder_code(self.encoder)]
        if self.exits:
            given.append(f"({', '.join(map(_written, self.exits))})")
        given += [f"{name}={_written(value)}" for name, value in self._arguments.items()]
        return f"{made}({', '.join(given)})"

    @property
    def program(self) -> str:
        """Lines that import what `code` names, make the classifier, and fit it on all images.

        A cascade is fitted on all but a fold, and calibrated on that.
        """
        code = self.code
        named = [kind.__name__ for kind in _HEADS if f"{kind.__name__}(" in code]
        return "\n".join(
            [
                *(["from sklearn.model_selection import train_test_split"] if self.exits else []),
                f"from clipretrieval import {code.partition('(')[0]}, StagedEncoder",
                *([f"from clipretrieval.heads import {', '.join(named)}"] if named else []),
                *(["from clipretrieval.images import scan_folder"] if self.exits and self._folder else []),
                f"classifier = {code}",
                *(self._fit_and_calibrate() if self.exits else [f"classifier.fit({self.images})"]),
            ]
        )

    def classifier(self) -> RetrievalClassifier | CascadeClassifier:
        """Return the advised classifier, to be fitted on all images; it shares the encoder's weights.

        A cascade has to be calibrated too, on images that are not fitted: see `program`.
        """
        if self.exits:
            return CascadeClassifier(self.encoder, self.exits, **self._arguments)
        return RetrievalClassifier(self.encoder, **self.params)

    @property
    def _arguments(self) -> dict[str, Any]:
        """What a classifier is made with, with the head, which is another one when a cascade is told none."""
        return {"head": "votes", **self.params} if self.exits else self.params

    @property
    def _folder(self) -> bool:
        return self.images.startswith('"')

    def _fit_and_calibrate(self) -> list[str]:
        images, labels = ("folder.paths", "folder.labels") if self._folder else ("images", "labels")
        share = f"test_size={1 / self.folds:.3g}, stratify={labels}, random_state=0"
        return [
            *([f"folder = scan_folder({self.images})"] if self._folder else []),
            f"fitted, others, labels, other_labels = train_test_split({images}, {labels}, {share})",
            "classifier.fit(fitted, labels)",
            f"classifier.calibrate(others, other_labels, max_loss={self.max_loss:g}, "
            f"confidence={self.confidence:g})",
        ]

    def table(self) -> str:
        """Return the rows as aligned text: ``*`` is advised, ``+`` lies on the front."""
        return "\n".join(_aligned([_HEAD, *map(_cells, self.rows)]))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns
        -------
        dict
            ``schema_version``, ``kind`` (``"recommendation"``), ``rows``, ``best``, ``advice``, ``met``,
            ``max_cost``, ``min_accuracy``, ``accuracy``, ``interval``, ``n``, ``n_images``, ``n_classes``,
            ``n_skipped``, ``folds``, ``crossed``, ``remarks``, ``code`` and ``seconds``.
        """
        return {
            "schema_version": RECOMMENDATION_SCHEMA,
            "kind": "recommendation",
            "rows": [dict(row) for row in self.rows],
            "best": dict(self.best),
            "advice": dict(self.advice),
            "met": self.met,
            "max_cost": self.wishes.max_cost,
            "min_accuracy": self.wishes.min_accuracy,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "n": self.n,
            "n_images": self.n_images,
            "n_classes": self.n_classes,
            "n_skipped": len(self.skipped),
            "folds": self.folds,
            "crossed": self.crossed,
            "remarks": list(self.remarks),
            "code": self.code,
            "seconds": self.seconds,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return `to_dict` as JSON, and write it to `path`, atomically, if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        return write_report(path, json_document(self.to_dict(), 2))

    def to_html(self, path: str | Path | None = None, *, title: str | None = None) -> str:
        """Return the advice, a chart of accuracy over cost and the table as a page, and write it if asked to.

        Parameters
        ----------
        path : str or Path, optional
        title : str, optional

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        from clipretrieval.evaluation.page.parts import PageTable
        from clipretrieval.evaluation.page.render import render_page
        from clipretrieval.evaluation.page.svg import cost_chart

        rows = [{**row, "name": row_name(row), "place": _place_words(row)} for row in self.rows]
        note = " ".join(_sentence(each) for each in [_CHART, *_legend(self)])
        table = PageTable("What was tried", _COLUMNS, rows, note=note, chart=cost_chart(self.rows))
        notes = [*map(_sentence, _verdict(self)), *self.program.splitlines()]
        page = render_page((), tables=(table,), title=title or _TITLE, notes=notes)
        return write_report(path, page, "page")

    def save_html(self, path: str | Path, *, title: str | None = None) -> None:
        """Write the page of `to_html` into a file."""
        self.to_html(path, title=title)

    def __str__(self) -> str:
        return "\n".join([self.table(), "", _MARKS, *_legend(self), "", *_verdict(self), "", self.program])

    def __repr__(self) -> str:
        advice = {name: self.advice[name] for name in ("stage", "pooling", "head")}
        return short_repr(self, rows=len(self.rows), advice=advice, accuracy=self.accuracy)

    def _repr_html_(self) -> str:
        notes = "".join(
            map(html_paragraph, [_MARKS, *_legend(self), *_verdict(self), *self.program.splitlines()])
        )
        return f"<div>{html_table(_HEAD, map(_cells, self.rows))}{notes}</div>"


def row_name(row: Mapping[str, Any]) -> str:
    """Return what a row is called in a sentence."""
    pooling = "" if row["pooling"] in (None, "mean") else f" {row['pooling']}"
    stage = f"cascade ({row['stage']})" if row["exits"] else row["stage"]
    return f"{stage}{pooling}, {row['head']}"


def _place_words(row: Mapping[str, Any]) -> str | None:
    found = [name for name in ("advised", "front") if row[name]]
    return ", ".join("on the front" if name == "front" else name for name in found) or None


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _mark(row: Mapping[str, Any]) -> str:
    return "*" if row["advised"] else "+" if row["front"] else ""


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        _mark(row),
        row["stage"],
        row["pooling"] or "-",
        row["head"],
        f"{row['accuracy']:.2%}",
        f"{row['low']:.2%} to {row['high']:.2%}",
        "<1e-300" if row["p_value"] == 0 else number_cell(row["p_value"], ".2g"),
        f"{row['multiply_adds']:.4g}",
        f"{row['encode_ms']:.2f}",
        f"{row['query_ms']:.2f}",
    ]


def _aligned(rows: list[Any]) -> list[str]:
    """Align a table whose first four columns are words."""
    words = [max(len(row[place]) for row in rows) for place in range(4)]
    begun = ["  ".join(row[place].ljust(words[place]) for place in range(4)) for row in rows]
    return aligned_table([[start, *row[4:]] for start, row in zip(begun, rows, strict=True)])


def _legend(found: Recommendation) -> list[str]:
    how = (
        f"each answered by classifiers fitted on the other {found.folds - 1} of {found.folds} folds"
        if found.crossed
        else f"{found.advice['n']:,} of them chosen on, {found.n:,} others measured on"
    )
    lines = [
        f"{found.n_images:,} images of {found.n_classes:,} classes, {how}",
        f"multiply-adds are those of encoder and head, with an exact search in {found.n_images:,} vectors; "
        "milliseconds are for an image, measured here side by side in batches, medians",
    ]
    lines += found.remarks
    if found.skipped:
        lines.append(f"{len(found.skipped)} images were skipped")
    return lines


def _verdict(found: Recommendation) -> list[str]:
    low, high = found.interval
    name = row_name(found.advice)
    return [
        f"advised: {name}, {_reason(found)}",
        f"expect {found.accuracy:.2%} right answers on unseen images of this kind (95 % interval {low:.2%} "
        f"to {high:.2%}) for {number_words(found.advice['multiply_adds'])} · 10⁹ multiply-adds an image",
    ]


def _reason(found: Recommendation) -> str:
    wishes, best = found.wishes, found.best
    within = "" if wishes.max_cost is None else f" within {number_words(wishes.max_cost)} · 10⁹ multiply-adds"
    if wishes.max_cost is not None and found.advice["multiply_adds"] > wishes.max_cost:
        return f"the cheapest; no candidate keeps{within}"
    if wishes.min_accuracy is not None:
        wanted = f"{wishes.min_accuracy:.2%}"
        if found.met:
            return f"the cheapest that reaches {wanted} with the lower end of its interval{within}"
        return (
            f"the most accurate{within}; no candidate reaches {wanted} with the lower end of its interval, "
            f"and this one's is {found.advice['low']:.2%}"
        )
    if found.place == found.best_place:
        return (
            f"the most accurate{within}; all that is cheaper is worse (McNemar's exact test, p < {LEVEL:g})"
        )
    return (
        f"the cheapest{within} that McNemar's exact test does not show to be worse than the most accurate, "
        f"{row_name(best)} (p = {found.advice['p_value']:.2g})"
    )


def _encoder_code(encoder: StagedEncoder) -> str:
    """Write the call that makes an encoder, without the arguments that have their defaults."""
    config, usual = encoder.config(), signature(StagedEncoder).parameters
    model = _written(config.pop("model")) if isinstance(encoder.model, str) else "model"
    if encoder.pretrained is None and not (isinstance(encoder.model, str) and _is_tagged(encoder.model)):
        del config["pretrained"]  # the model brings its weights
    if encoder.image_size == encoder._source.size:
        del config["image_size"]
    told = [f"{name}={_written(value)}" for name, value in config.items() if value != usual[name].default]
    if not any(each.startswith("stage=") for each in told):
        told.append(f"stage={_written(encoder.stage)}")
    return f"StagedEncoder({', '.join([model, *told])})"


def _is_tagged(model: str) -> bool:
    """Tell whether a model is one whose weights `pretrained` names."""
    return not model.startswith((LOCAL_DIR, HF_HUB))


def _written(value: Any) -> str:
    return json_document(value) if isinstance(value, str) else repr(value)
