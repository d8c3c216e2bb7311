"""Which stage, pooling and head to take for labelled images, and at what cost."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_bool, check_int, check_number
from clipretrieval._util.labels import class_array, label_kind, stored_labels
from clipretrieval._util.progress import Progress, check_progress, image_counter, open_progress
from clipretrieval._util.text import json_document
from clipretrieval._util.warning import warn_caller
from clipretrieval.cascade.calibration import check_promise
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.comparison.advice import Choice, Wishes, choose, corrected_interval, p_values, pareto_front
from clipretrieval.comparison.candidates import (
    DEFAULT_HEADS,
    HeadSetting,
    StageVectors,
    head_settings,
    stage_vectors,
)
from clipretrieval.comparison.cascade_trial import CascadeTrial, Said
from clipretrieval.comparison.folds import CROSSED, Folds, check_class_sizes, divide
from clipretrieval.comparison.labels_ahead import known_labels
from clipretrieval.comparison.recommendation_report import Recommendation
from clipretrieval.comparison.speed import Sample, median_times
from clipretrieval.comparison.spool import Spool
from clipretrieval.encoding.staged_encoder import StagedEncoder, stages_to_try, stopped_at
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.errors import ClipRetrievalWarning, InvalidInputError
from clipretrieval.evaluation.metrics import wilson_interval
from clipretrieval.images.folders import ImageFolder, is_folder
from clipretrieval.images.listing import listed
from clipretrieval.images.sources import count_hint, iter_raw
from clipretrieval.images.stream import SkippedImage, check_on_error
from clipretrieval.images.tables import labelled_source
from clipretrieval.retrieval.conflicts import warn_of_lookalikes
from clipretrieval.retrieval.given_labels import GivenLabels
from clipretrieval.retrieval.inputs import none_left
from clipretrieval.retrieval.unusable import direction_needed, usable_batches
from clipretrieval.stores.registry import DEFAULT_STORE, store_class
from clipretrieval.types import FloatArray, Label, Metric

__all__ = ["recommend"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PURPOSE = "to choose on"
TIMED = 16
"""Images that are timed together."""


def recommend(
    X: Any,
    y: Any = None,
    *,
    max_cost: float | None = None,
    min_accuracy: float | None = None,
    encoder: StagedEncoder | None = None,
    stages: str | Sequence[str] | None = None,
    poolings: str | Sequence[str] | None = None,
    heads: Any = None,
    cross: bool | None = None,
    folds: int = 5,
    cascades: bool = True,
    max_loss: float = 0.005,
    confidence: float = 0.95,
    timed_images: int = 96,
    on_error: str = "raise",
    progress: Progress | bool | None = None,
    seed: int = 0,
) -> Recommendation:
    """Try stages, poolings and heads on labelled images, and advise the cheapest that is good enough.

    All images are encoded once, for all stages. Without these two, the advice is the cheapest candidate that
    McNemar's exact test (p ≥ 0.05) does not show to be worse than the most accurate one. Nothing of it is
    kept: the `code` of the result, or its `classifier`, is what to fit on all images.

    Parameters
    ----------
    X, y, on_error
        Labelled images, as for `RetrievalClassifier.fit`; at least three different ones of each class.
    max_cost : float, optional
        The most arithmetic for an image, in 10⁹ multiply-adds; see `StagedEncoder.multiply_adds`. That of the
        head and of an exact search counts too.
    min_accuracy : float in (0, 1], optional
        Advise the cheapest candidate that reaches this accuracy with the lower end of its interval, however
        much better others are.
    encoder : StagedEncoder, optional
        Whose stages are tried; OpenAI's RN50 when left out.
    stages : sequence of str, optional
        Also several that are joined, such as ``"layer1+layer2"``. When left out, ``("layer1",
        "layer2", "mid", "late", "final")``; of other towers than CLIP's ResNets the blocks after a quarter,
        half (``mid``) and three quarters, ``late`` and ``final``.
    poolings : sequence of str, optional
        All with all stages; the encoder's own when left out.
    heads : sequence of (str, Head or dict), optional
        Names or heads as ``RetrievalClassifier(head=…)`` takes them, or dicts of its arguments. ``"votes"``
        stands for two: k=1, and k=20 with softmax weights and ``normalize=True``. When left out: votes and
        the discriminant, and, of more than 2,000 images, ``"fused"``, which takes seconds to learn.
    cross : bool, optional
        True: every image is answered by classifiers that are fitted on the other folds. False: one fold is
        chosen on and another measured on, of at most 10,000 images each. When left out: True up to 2,000
        images.
    folds : int
        At least 3.
    cascades : bool
        Whether a `~clipretrieval.CascadeClassifier` is tried too: for each pooling over all stages, and over
        all but the shallowest, with the head of the most accurate candidate, and that of the one that would
        be advised without cascades. When images leave is learned and calibrated on other images than it is
        measured on. Where these are too few, no cascade is tried, and a remark says so.
    max_loss, confidence : float
        As for `CascadeClassifier.calibrate`.
    timed_images : int
        How many images, drawn at random, are timed.
    progress : callable or True, optional
        Called with (images encoded, total or None). True shows bars.
    seed : int
        Of the folds, which go by the contents of all images, and of what else is drawn. With one image more
        or less, the folds are other ones.

    Returns
    -------
    Recommendation

    Raises
    ------
    InvalidInputError
        If an argument is none of the above, labels are missing, or a class has fewer than three images.

    Warns
    -----
    ClipRetrievalWarning
        If an image comes under several labels, of which the last counts, or labels differ in case, spaces or
        Unicode normalisation alone.

    Notes
    -----
    The interval is for unseen images *of the same kind*, answered by what is fitted on all the given ones.
    Images that are no independent draws, such as many of one person, lie in several folds, and then all
    figures promise too much.

    Where one fold is measured on, it is the 95 % Wilson interval of that, after a fit on all the others; the
    choice has not seen it, so nothing is corrected. Where all are answered, the same images have to choose
    and to measure: the accuracy is corrected by the bootstrap for the luck that was chosen, and the interval
    widened by that (see ``corrected_interval``). Both are of classifiers that
    were fitted on a fifth fewer images than there are, and so err, if anything, on the low side. The
    interval is for the accuracy on ever more images: that on a few scatters more, by their own luck.
    """
    started = time.perf_counter()
    encoder = StagedEncoder() if encoder is None else encoder
    staged = stages is None and isinstance(encoder, StagedEncoder)
    tried = stage_vectors(encoder, stages_to_try(encoder) if staged else stages, poolings)
    settings = None if heads is None else head_settings(heads)
    wishes = _check_wishes(max_cost, min_accuracy)
    cross = None if cross is None else check_bool(cross, "cross")
    cascades = check_bool(cascades, "cascades")
    max_loss, confidence, _ = check_promise(max_loss, confidence, None)
    folds = check_int(folds, "folds", least=3)
    timed_images, seed = check_int(timed_images, "timed_images"), check_int(seed, "seed", least=0)
    check_on_error(on_error)
    check_progress(progress)
    images = listed(X)
    known = known_labels(images, y, none_left(PURPOSE, ()))
    if known is not None:
        check_class_sizes(known[1])
    images = labelled_source(images, y)
    sample, skipped = Sample(timed_images, seed), list[SkippedImage]()
    with closing(Spool(tuple(each.name for each in tried))) as spool:
        with open_progress(progress, "encoding") as shown:
            _encode(encoder, tried, settings or (), spool, sample, images, y, on_error, skipped, shown)
        rows, labels, kind = _distinct(spool)
        check_class_sizes(class_array(labels, kind, sort=False).tolist())
        crossed = len(rows) <= CROSSED if cross is None else cross
        parts = divide([spool.ids[row] for row in rows], labels, folds, seed, crossed)
        if settings is None:
            settings = _default_settings(parts)
        codes = np.unique(np.array(labels, dtype=object), return_inverse=True)[1].astype(np.int64)
        trial = _Trial(spool, rows, codes, parts, settings, timed_images)
        with open_progress(check_progress(progress) is True, "comparing") as shown:
            for place, each in enumerate(tried):
                shown(place, len(tried))
                trial.run(each)
        timed = sample.images(spool.indices)
        turns = [timed[start : start + TIMED] for start in range(0, len(timed), TIMED)]
        encode_s = median_times({each.name: each.encoder.encode for each in tried}, turns)
        right, table = trial.table(tried, encode_s)
        cascade = CascadeTrial(tried, len(settings), len(rows), folds, max_loss, confidence)
        remark = ""
        if cascades:
            more, cascade_rows, remark = cascade.run(table, trial.said)
            right, table = np.column_stack([right, *more]), table + cascade_rows
        costs = np.array([row["multiply_adds"] for row in table])
        choice = choose(right, costs, wishes)
        stage, setting = divmod(choice.place, len(settings))
        advised = None
        if stage >= len(tried):
            advised = cascade.cascades[choice.place - len(tried) * len(settings)]
            stage, setting = advised.stages[-1], advised.setting
        if parts.crossed:
            accuracy, interval = corrected_interval(right, costs, wishes, seed)
            n = len(right)
        else:
            answers = (
                trial.measure(tried[stage], setting)[2]
                if advised is None
                else cascade.measure(advised, trial.measure)
            )
            accuracy, n = float(answers.mean()), len(answers)
            interval = wilson_interval(int(answers.sum()), n)
    _complete(table, right, costs, choice)
    return Recommendation(
        rows=table,
        place=choice.place,
        best_place=choice.best,
        encoder=tried[stage].encoder
        if advised is None
        else stopped_at(encoder, tried[stage].encoder.stage, advised.pooling),
        params=dict(settings[setting].params),
        accuracy=accuracy,
        interval=interval,
        n=n,
        wishes=wishes,
        met=choice.met,
        n_images=len(rows),
        n_classes=len(set(labels)),
        folds=folds,
        crossed=parts.crossed,
        seconds=time.perf_counter() - started,
        skipped=tuple(skipped),
        exits=() if advised is None else tuple(tried[place].encoder.stage for place in advised.stages),
        max_loss=max_loss,
        confidence=confidence,
        remarks=(remark,) if remark else (),
        **(_as_code(X) if y is None else {}),
    )


def _as_code(given: Any) -> dict[str, str]:
    """Return what was passed as code, where that is a folder."""
    path = given.root if isinstance(given, ImageFolder) else given
    if isinstance(path, str | os.PathLike) and is_folder(path):
        return {"images": json_document(os.fspath(path))}
    return {}


class _Trial:
    """The answers of all candidates to the images that are chosen on, and how long these take."""

    def __init__(
        self,
        spool: Spool,
        rows: list[int],
        codes: Ints,
        folds: Folds,
        settings: Sequence[HeadSetting],
        timed: int,
    ) -> None:
        self._spool, self._rows, self._codes, self._folds = spool, np.array(rows), codes, folds
        self._settings, self._timed = settings, timed
        self._store_class = store_class(DEFAULT_STORE)  # looked up once: that takes longer than to fill it
        self._right: list[Bools] = []
        self._answers, self._margins = list[Ints](), list[Floats]()
        self._query_s: list[float] = []

    def run(self, stage: StageVectors) -> None:
        """Answer by each setting, from the vectors of a stage."""
        vectors = self._vectors(stage)
        shape = (len(self._settings), len(vectors))
        answers, margins = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        turns = self._folds.turns
        for turn, (stored, asked) in enumerate(turns):
            with ExitStack() as opened_stores:
                ways: dict[str, Callable[[Any], Any]] = {}
                for place, setting in enumerate(self._settings):
                    made = self._fitted(setting, vectors[stored], stored, opened_stores)
                    answers[place, asked], margins[place, asked] = _said(made, vectors[asked])
                    ways[setting.name] = partial(_answered, made)
                if turn == len(turns) - 1:
                    some = vectors[asked[: self._timed]]
                    parts = [some[start : start + TIMED] for start in range(0, len(some), TIMED)]
                    self._query_s += median_times(ways, parts).values()
        chosen_on = self._folds.chosen_on
        self._right += list(answers[:, chosen_on] == self._codes[chosen_on])
        self._answers += list(answers[:, chosen_on])
        self._margins += list(margins[:, chosen_on])

    @property
    def said(self) -> Said:
        """What each candidate said of the images that are chosen on, arrays of shape (n_candidates, n)."""
        return np.stack(self._answers), np.stack(self._margins), np.stack(self._right)

    def measure(self, stage: StageVectors, setting: int) -> Said:
        """Return what is said of the images that nothing was chosen by; see `said`."""
        vectors = self._vectors(stage)
        stored, asked = self._folds.measured_on
        with ExitStack() as opened_stores:
            made = self._fitted(self._settings[setting], vectors[stored], stored, opened_stores)
            answers, margins = _said(made, vectors[asked])
        return answers, margins, answers == self._codes[asked]

    def table(
        self, tried: Sequence[StageVectors], encode_s: dict[str, float]
    ) -> tuple[Bools, list[dict[str, Any]]]:
        """Return the answers, shape (n, n_candidates), and a row for each candidate."""
        right = np.stack(self._right, axis=1)
        rows = list[dict[str, Any]]()
        for stage in tried:
            for setting in self._settings:
                place = len(rows)
                own = setting.multiply_adds(stage.output.dim, len(self._codes), int(self._codes.max()) + 1)
                encoding = stage.encoder.multiply_adds()
                count = int(right[:, place].sum())
                low, high = wilson_interval(count, len(right))
                rows.append(
                    {
                        "stage": stage.encoder.stage,
                        "pooling": stage.pooling,
                        "head": setting.name,
                        "dim": stage.output.dim,
                        "accuracy": count / len(right),
                        "n": len(right),
                        "low": low,
                        "high": high,
                        "multiply_adds": encoding + own,
                        "head_multiply_adds": own,
                        "encode_ms": 1000 * encode_s[stage.name],
                        "query_ms": 1000 * self._query_s[place],
                        "total_ms": 1000 * (encode_s[stage.name] + self._query_s[place]),
                        "exits": None,
                    }
                )
        return right, rows

    def _vectors(self, stage: StageVectors) -> FloatArray:
        vectors: FloatArray = self._spool.vectors(stage.name)[self._rows]
        return vectors

    def _fitted(
        self, setting: HeadSetting, vectors: FloatArray, stored: Ints, stores: ExitStack
    ) -> RetrievalClassifier:
        """Fit a classifier."""
        made = setting.classifier()
        made.set_params(store=self._store_class(metric=made.metric))
        with _quietly():
            made.fit(vectors, self._codes[stored])
        stores.callback(made.store_.close)
        return made


def _said(made: RetrievalClassifier, asked: FloatArray) -> tuple[Ints, Floats]:
    """Return the answers that `predict` gives, and how far each is ahead of the second."""
    answers, margins = list[Ints](), list[Floats]()
    with _quietly():
        retriever, head = made._answering()
        numbers = retriever.index.number_classes()
        for batch, near in retriever.search(asked, head.k, numbers=numbers):
            decision = head.decide(batch.vectors[VECTORS], near, numbers)
            answers.append(numbers.labels(decision.answers))
            margins.append(decision.share_and_margin[1])
    return np.concatenate(answers), np.concatenate(margins)


def _answered(made: RetrievalClassifier, asked: FloatArray) -> Any:
    with _quietly():
        return made.predict(asked)


@contextmanager
def _quietly() -> Iterator[None]:
    """Let nothing warn of a candidate: it is tried, and not what the caller has asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipRetrievalWarning)
        yield


def _check_wishes(max_cost: float | None, min_accuracy: float | None) -> Wishes:
    return Wishes(
        None if max_cost is None else check_number(max_cost, "max_cost", above=0),
        None if min_accuracy is None else check_number(min_accuracy, "min_accuracy", above=0, most=1),
    )


def _encode(
    encoder: StagedEncoder,
    tried: Sequence[StageVectors],
    settings: Sequence[HeadSetting],
    spool: Spool,
    sample: Sample,
    images: Any,
    labels: Any,
    on_error: str,
    skipped: list[SkippedImage],
    progress: Progress,
) -> None:
    """Encode all images once, at all stages, into the spool."""
    tell = image_counter(progress, count_hint(images), skipped)
    raws = iter_raw(sample.passing(iter_raw(images, labels)))
    outputs = [each.output for each in tried]
    needs = {direction_needed(Metric.parse(each.classifier().metric)) for each in settings} - {""}
    directed = {output.name: need for output in outputs for need in needs}
    batches = encoder._encode(raws, outputs, on_error=on_error, skipped=skipped)
    for batch in usable_batches(
        batches, directed, encoder=type(encoder).__name__, on_error=on_error, skipped=skipped
    ):
        label_kind(batch.labels, places=batch.indices)
        spool.add(batch)
        tell(len(batch))
    if not len(spool):
        raise InvalidInputError(none_left(PURPOSE, skipped))


def _distinct(spool: Spool) -> tuple[list[int], list[Label], str]:
    """Return a row of each different image, with the label that it was given last, and their type.

    In the order of their ids: that in which they come changes nothing.
    """
    kind = label_kind(spool.labels, places=spool.indices)
    given, first = GivenLabels(), dict[str, int]()
    stored = stored_labels(spool.labels, kind)
    for row, (name, label, source) in enumerate(zip(spool.ids, stored, spool.sources, strict=True)):
        given.note(name, label, source)
        first.setdefault(name, row)
    count, conflicts = given.count_and_list(kind)
    if count:
        warn_caller(
            f"{count} {'image was' if count == 1 else 'images were'} given under several labels, such as "
            f"{conflicts[0]}; the last label counts"
        )
    names = sorted(first)
    labels = [label for label in map(given.label, names) if label is not None]
    warn_of_lookalikes(class_array(labels, kind))
    return [first[name] for name in names], labels, kind


def _default_settings(folds: Folds) -> list[HeadSetting]:
    """List the heads that learn in reasonable time, without votes of more images than there are."""
    stored = min(len(stored) for stored, _ in folds.turns)
    more = [] if len(folds.numbers) <= CROSSED else ["fused"]
    return [each for each in head_settings([*DEFAULT_HEADS, *more]) if each.k <= stored]


def _complete(
    table: list[dict[str, Any]], right: Bools, costs: npt.NDArray[np.float64], choice: Choice
) -> None:
    """Note in each row what it is beside the others."""
    best = right[:, choice.best]
    gained, lost = (right & ~best[:, None]).sum(axis=0), (~right & best[:, None]).sum(axis=0)
    p = p_values(gained, lost).tolist()
    front = set(pareto_front(costs, right.mean(axis=0)))
    for place, row in enumerate(table):
        row["p_value"] = None if place == choice.best else p[place]
        row["front"] = place in front
        row["advised"] = place == choice.place
