"""Put CLIP itself and its stages side by side on the same pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._asking import open_ballot, vote
from clipretrieval._timing import Progress, Timing
from clipretrieval.encoding.staged import StagedEncoder
from clipretrieval.encoding.views import stopped_at
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation import _speed
from clipretrieval.evaluation._comparison_plan import Plan, check_plan
from clipretrieval.evaluation._indexes import Index, StoreMakers, fill_indexes, open_indexes
from clipretrieval.evaluation._significance import mcnemar_exact
from clipretrieval.evaluation._spool import Remembering, Replay, Spool
from clipretrieval.evaluation.comparison_report import ZERO_SHOT, ComparisonReport, ComparisonRow
from clipretrieval.evaluation.evaluating import evaluate
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.evaluation.zero_shot import check_labels, make_report
from clipretrieval.images import SkippedImage, check_on_error, count_hint, iter_raw
from clipretrieval.types import FloatArray, Metric
from clipretrieval.voting import Weighting
from clipretrieval.zeroshot import STAGE, ZeroShotClassifier

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["compare"]

OPEN_CLIP = "open_clip"


def compare(
    train: Any,
    test: Any,
    *,
    encoder: StagedEncoder | None = None,
    stages: Sequence[str] = ("pixel", "mid", "late", "final"),
    zero_shot: ZeroShotClassifier | bool | None = None,
    stores: Sequence[str] | StoreMakers = ("faiss",),
    k: int | Iterable[int] = (1,),
    weights: Weighting | Iterable[Weighting] = ("uniform",),
    metric: Metric | str = "l2",
    train_labels: Any = None,
    test_labels: Any = None,
    timed_images: int = 1000,
    single_images: int = 100,
    open_clip: bool = True,
    resume: bool = False,
    on_error: str = "raise",
    progress: Progress | None = None,
) -> ComparisonReport:
    """Measure stages, stores and settings beside CLIP's own answer, accuracy against time.

    Training and test images are encoded once for all stages. The accuracies are those of
    `RetrievalClassifier.evaluate` and `ZeroShotClassifier.evaluate` on all test images. Seconds per 1,000
    images are measured for each classifier by itself afterwards, as the study did: `timeit`'s clock,
    1,000 images, averaged; the inference apart from the query.

    Parameters
    ----------
    train, test
        Labelled images as `RetrievalClassifier.fit` takes them, such as folders with a sub-folder for each
        class.
    encoder : StagedEncoder, optional
        OpenAI's RN50 when left out.
    stages : sequence of str
    zero_shot : ZeroShotClassifier or bool, optional
        The baseline, on the same `encoder`. True takes the labels as the classes' names and the study's
        prompts.
    stores : sequence of str, or mapping of name to callable
        Registered names, or what makes an empty store for a stage. The stores are closed at the end.
    k, weights
        One or several, combined.
    metric : {"l2", "cosine", "ip"}
    train_labels, test_labels : sequence, optional
        Where the images do not bring their labels.
    timed_images, single_images : int
        How many test images, drawn at random with a seed, are timed together, and one by one.
    open_clip : bool
        Whether open_clip as it comes is timed too, which takes several times as long as all else that is
        timed.
    resume : bool
        Go on with stores that hold a part of the images.
    on_error : {"raise", "skip"}
    progress : callable, optional
        Called with (images done, total or None) while images are encoded.

    Returns
    -------
    ComparisonReport

    Raises
    ------
    InvalidInputError
        If an argument is none of the above, images or labels are missing, or a test label is none of the
        classes of `zero_shot`.
    """
    started = time.perf_counter()
    encoder = encoder if encoder is not None else StagedEncoder()
    plan = check_plan(encoder, stages, stores, k, weights, metric, zero_shot, timed_images, single_images)
    check_on_error(on_error)
    seconds: dict[str, float] = {}
    with open_indexes(encoder, plan.stages, plan.stores, plan.metric, resume) as indexes:
        fit_timing, skipped = fill_indexes(
            encoder, indexes, train, train_labels, on_error=on_error, progress=progress
        )
        seconds["fit"] = time.perf_counter() - started
        baseline = _baseline(zero_shot, encoder, indexes, plan)
        sample = _speed.Sample(plan.timed)
        spool = Spool(tuple(dict.fromkeys([*plan.stages, *([STAGE] if baseline is not None else [])])))
        with closing(spool):
            skipped += _encode(encoder, spool, sample, test, test_labels, on_error, progress)
            seconds["encode_test"] = time.perf_counter() - started - sum(seconds.values())
            sides = _answer(indexes, plan, spool, baseline)
            seconds["answer"] = time.perf_counter() - started - sum(seconds.values())
        speeds, whole = _measure(encoder, sides, sample.pictures(), plan, baseline, open_clip)
        seconds["measure"] = time.perf_counter() - started - sum(seconds.values())
        n_train = indexes[0].store.count()
        rows, name = _rows(sides, speeds, whole, n_train)
    return ComparisonReport(
        rows=rows,
        baseline=name,
        n_train=n_train,
        n_test=rows[0].report.n_test,
        timed_images=min(plan.timed, rows[0].report.n_test),
        open_clip=whole,
        fit_timing=fit_timing,
        seconds={**seconds, "total": time.perf_counter() - started},
        skipped=tuple(skipped),
    )


@dataclass(eq=False)
class _Side:
    """One classifier: its answers, and how to get them again."""

    name: str
    report: EvaluationReport
    answerer: _speed.Answerer
    dim: int


def _baseline(
    zero_shot: ZeroShotClassifier | bool | None, encoder: StagedEncoder, indexes: list[Index], plan: Plan
) -> ZeroShotClassifier | None:
    if isinstance(zero_shot, ZeroShotClassifier) or not zero_shot:
        return zero_shot or None
    classes = indexes[0].classifier(*plan.settings[0]).classes_.tolist()
    return ZeroShotClassifier(encoder, classes)


def _encode(
    encoder: StagedEncoder,
    spool: Spool,
    sample: _speed.Sample,
    test: Any,
    labels: Any,
    on_error: str,
    progress: Progress | None,
) -> list[SkippedImage]:
    """Encode the test images once, at all stages, into the spool."""
    total, skipped = count_hint(test), list[SkippedImage]()
    pairs = sample.passing(iter_raw(test, labels))
    stages = spool.stages
    for batch in encoder.stream(pairs, stages=stages, on_error=on_error, skipped=skipped):
        spool.add(batch)
        if progress is not None:
            progress(len(spool) + len(skipped), total)
    if not len(spool):
        raise InvalidInputError("there are no images to classify; pass at least one that can be decoded")
    return skipped


def _answer(
    indexes: list[Index], plan: Plan, spool: Spool, baseline: ZeroShotClassifier | None
) -> list[_Side]:
    """Answer all test images with each classifier; each index is searched once."""
    sides = [] if baseline is None else [_zero_shot_side(baseline, spool)]
    for index in indexes:
        most = min(plan.most, index.store.count())
        remembered = Remembering(index.store, most)
        replay = Replay(index.encoder, spool)
        infer = index.encoder.encode
        for number, way in plan.settings:
            classifier = index.classifier(number, way)
            asked = index.classifier(number, way)
            asked.encoder, asked.store_ = replay, remembered
            report = evaluate(asked, range(len(spool)))
            name = plan.name(index.stage, index.name, number, way)
            answerer = _speed.Answerer(infer, _query(classifier))
            sides.append(_Side(name, report, answerer, index.encoder.dim))
    return sides


def _zero_shot_side(baseline: ZeroShotClassifier, spool: Spool) -> _Side:
    started, timing = time.perf_counter(), Timing()
    truth = check_labels(baseline, spool.labels)
    parts = []
    for batch in spool.batches(STAGE):
        with timing.measure("search", len(batch)):
            parts.append(baseline.cosines(batch.vectors[STAGE]))
    report = make_report(
        baseline, np.concatenate(parts), truth, timing=timing, seconds=time.perf_counter() - started
    )
    encoder = stopped_at(baseline.encoder_, STAGE)

    def query(vectors: FloatArray) -> Any:
        return baseline.cosines(vectors).argmax(axis=1)

    return _Side(ZERO_SHOT, report, _speed.Answerer(encoder.encode, query), encoder.dim)


def _query(classifier: RetrievalClassifier) -> Any:
    ballot = open_ballot(classifier)

    def query(vectors: FloatArray) -> Any:
        wanted = min(int(classifier.k), classifier.store_.count())
        return vote(classifier, classifier.store_.search(vectors, wanted), ballot)[0]

    return query


def _measure(
    encoder: StagedEncoder,
    sides: list[_Side],
    pictures: list[Any],
    plan: Plan,
    baseline: ZeroShotClassifier | None,
    open_clip: bool,
) -> tuple[dict[str, _speed.Speed], _speed.Speed | None]:
    answerers = {side.name: side.answerer for side in sides}
    if baseline is not None and open_clip:
        answerers[OPEN_CLIP] = _speed.open_clip_answerer(encoder, sides[0].answerer.query)
    speeds = _speed.measure_speed(answerers, pictures, plan.singles)
    return speeds, speeds.pop(OPEN_CLIP, None)


def _rows(
    sides: list[_Side],
    speeds: Mapping[str, _speed.Speed],
    whole: _speed.Speed | None,
    n_train: int,
) -> tuple[tuple[ComparisonRow, ...], str]:
    """Compare every side with the baseline: the zero-shot answer, or else the last stage's first row."""
    clip = speeds.get(ZERO_SHOT)
    base = sides[0] if clip is not None else sides[-1]
    rows = []
    for side in sides:
        speed = speeds[side.name]
        vectors = len(side.report.classes) if side.name == ZERO_SHOT else n_train
        rows.append(
            ComparisonRow(
                name=side.name,
                report=side.report,
                speed=speed,
                bytes=4 * side.dim * vectors,
                mcnemar=None if side is base else mcnemar_exact(side.report.correct, base.report.correct),
                speedup=clip.total_s / speed.total_s if clip else None,
                speedup_open_clip=whole.total_s / speed.total_s if whole else None,
            )
        )
    return tuple(rows), base.name
