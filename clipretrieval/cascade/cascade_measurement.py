"""Measure a cascade: how accurate and how fast it was on labeled images, and what each exit made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clipretrieval._util.labels import Spelling, class_array, label_kind, stored_labels
from clipretrieval._util.progress import Progress
from clipretrieval._util.timing import Timing
from clipretrieval._util.warning import warn_caller
from clipretrieval.cascade.cascade_explanation import explain_answers
from clipretrieval.cascade.cascade_pass import CascadePass, ExitAnswer
from clipretrieval.cascade.cascade_report import CascadeReport
from clipretrieval.cascade.exit_policy import ExitEvidence, ExitPolicy
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.measurement import index_setting
from clipretrieval.evaluation.mistakes import SHOWN_NEIGHBORS, Mistake
from clipretrieval.evaluation.validation import check_untuned
from clipretrieval.images.sources import count_hint
from clipretrieval.images.tables import labelled_source
from clipretrieval.retrieval.edit import held_ids
from clipretrieval.retrieval.manifest import manifest_classes
from clipretrieval.retrieval.reports import FitReport
from clipretrieval.retrieval.true_labels import check_kind, check_truth
from clipretrieval.stores.base import view_manifest
from clipretrieval.types import AnyArray, Label

__all__ = ["LabelledAnswers", "measure_cascade"]


class LabelledAnswers:
    """What is collected of a cascade's answers to labeled images, batch by batch.

    Parameters
    ----------
    asked : CascadePass
    tuned : set of str
        Content ids of images that may not be measured on.
    worst : int
        How many of the incorrect answers to keep whole, those of the greatest shares.

    Attributes
    ----------
    truth : list
        Labels of the type that was fitted, or numbers that compare with it.
    ids : list of str
    sources : list of (str or None)
    indices : list of int
    said : list of list of ExitAnswer
    worst : list of int
        Places of the incorrect answers that are kept whole, the worst first.
    """

    def __init__(self, asked: CascadePass, tuned: frozenset[str] = frozenset(), worst: int = 0) -> None:
        index = asked.exits[-1].index
        self._tuned, self._most, self._fitted_kind = tuned, worst, index.classes.kind
        self._spelling = Spelling(index.classes.labels.tolist())
        self._kind: str | None = None
        self.worst: list[int] = []
        self.truth: list[Label] = []
        self.ids: list[str] = []
        self.sources: list[str | None] = []
        self.indices: list[int] = []
        self.said: list[list[ExitAnswer]] = []

    def add(self, batch: EncodedBatch, said: Sequence[list[ExitAnswer]]) -> None:
        """Take labeled images and what was said of them.

        Raises
        ------
        InvalidInputError
            If labels are missing or of another type than those that were fitted, or an image was tuned on.
        """
        check_untuned({"cascade": self._tuned}, batch.ids, len(self.truth))
        self._kind = label_kind(batch.labels, self._kind, places=batch.indices)
        check_kind(self._kind, self._fitted_kind)
        first = len(self.truth)
        self.truth += self._spelling.apply(stored_labels(batch.labels, self._kind, self._fitted_kind))
        self.ids += batch.ids
        self.sources += batch.sources
        self.indices += batch.indices
        self.said += said
        self.worst += range(first, len(self.truth))
        self._drop()

    def correct(self, place: int) -> list[bool]:
        """Tell whether the answer of an exit to which all images came is correct."""
        return [each[place].answer == label for each, label in zip(self.said, self.truth, strict=True)]

    def _drop(self) -> None:
        """Keep vectors and neighbors of the worst mistakes alone."""
        wrong = [row for row in self.worst if self.said[row][-1].answer != self.truth[row]]
        wrong.sort(key=lambda row: (-self.said[row][-1].share, row))
        kept = set(wrong[: self._most])
        for row in self.worst:
            if row not in kept:
                self.said[row][-1] = self.said[row][-1].without_query()
        self.worst = wrong[: self._most]


def measure_cascade(
    ask: Callable[..., CascadePass],
    X: Any,
    y: Any,
    *,
    stages: Sequence[str],
    multiply_adds: Sequence[float],
    policy: ExitPolicy,
    store_name: str,
    on_error: str,
    progress: Progress,
    tuned: frozenset[str],
    mistakes: int,
    curve: bool,
    fit_report: FitReport | None,
) -> CascadeReport:
    """Answer labeled images and report on it; see `CascadeClassifier.evaluate`."""
    asked = ask(keep=mistakes > 0)
    index = asked.exits[-1].index
    check_truth(index, X, y)
    X, total = labelled_source(X, y), count_hint(X)
    started, found = time.perf_counter(), LabelledAnswers(asked, tuned, mistakes)
    for batch, said in asked.answers(X, y, on_error=on_error, tell=progress, total=total):
        found.add(batch, said)
    seconds = time.perf_counter() - started
    evidence = None
    if curve:
        again = ask(complete=True)
        whole = LabelledAnswers(again)
        for batch, said in again.answers(X, y, on_error=on_error, tell=progress, total=total):
            whole.add(batch, said)
        if (whole.ids, whole.indices) != (found.ids, found.indices):
            raise InvalidInputError(
                "X gave other images when it was gone through again, for what the last exit says of them; "
                "pass images that stay the same, or curve=False"
            )
        evidence = evidence_of(whole)
    kind = index.classes.kind
    left = [said[-1] for said in found.said]
    y_true = class_array(found.truth, kind, sort=False)
    answers = stored_labels([answer.answer for answer in left], kind)
    y_pred = class_array(answers, kind, sort=False)
    _warn_of_known(asked, found.ids)
    listed = manifest_classes(view_manifest(index.store))
    return CascadeReport(
        y_true=y_true,
        y_pred=y_pred,
        distances=np.array(
            [np.inf if np.isnan(answer.distance) else answer.distance for answer in left], dtype=np.float32
        ),
        confidence=np.array([answer.share for answer in left]),
        margin=np.array([answer.margin for answer in left]),
        sources=tuple(found.sources),
        positions=np.array(found.indices, dtype=np.int64),
        mistakes=_mistakes(asked, stages, policy, found, y_true),
        classes=class_array({*listed, *found.truth, *answers}, kind),
        setting=index_setting(index, asked.exits[-1].head, store_name) | {"stage": ", ".join(stages)},
        timing=asked.timing,
        fit_timing=fit_report.timing if fit_report else Timing(),
        fit_seconds=fit_report.seconds if fit_report else 0.0,
        seconds=seconds,
        skipped=tuple(asked.skipped),
        stages=tuple(stages),
        places=np.array([answer.place for answer in left], dtype=np.int64),
        multiply_adds=tuple(multiply_adds),
        image_ms=_image_ms(asked, seconds),
        policy=policy,
        evidence=evidence,
    )


def evidence_of(answers: LabelledAnswers) -> ExitEvidence:
    """Return what all exits said of images that all came to the last one."""
    exits = range(len(answers.said[0]))
    margins, agrees, distances = (
        np.array([[getattr(each[place], name) for each in answers.said] for place in exits])
        for name in ("margin", "agrees", "distance")
    )
    return ExitEvidence(margins, agrees, distances, np.array([answers.correct(place) for place in exits]))


def _image_ms(asked: CascadePass, seconds: float) -> tuple[float, ...]:
    """Return an image's milliseconds up to each exit: the wall time, divided as the work was."""
    decoding = asked.timing.seconds.get("decode", 0.0)
    work = decoding + sum(each.seconds for each in asked.exits)
    images = max(1, asked.exits[0].images)
    reached, found = decoding / images, []
    for each in asked.exits:
        reached += each.seconds / each.images if each.images else 0.0
        found.append(1000 * reached * (seconds / work if work else 0.0))
    return tuple(found)


def _warn_of_known(asked: CascadePass, ids: Sequence[str]) -> None:
    known = held_ids(asked.exits[-1].index.store, ids)
    if known:
        warn_caller(
            f"{len(known)} of the {len(ids)} images are stored in the classifier and find themselves, so the "
            "accuracy is too high; evaluate on images that it was not fitted on"
        )


def _mistakes(
    asked: CascadePass,
    stages: Sequence[str],
    policy: ExitPolicy,
    found: LabelledAnswers,
    y_true: AnyArray,
) -> tuple[Mistake, ...]:
    rows = found.worst
    said = [found.said[row] for row in rows]
    explained = explain_answers(asked.exits, stages, policy, said, k=SHOWN_NEIGHBORS)
    return tuple(
        Mistake(row, y_true[[row]].tolist()[0], explanation.distance, explanation)
        for row, explanation in zip(rows, explained, strict=True)
    )
