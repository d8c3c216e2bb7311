"""Put CLIP itself and its stages side by side on the same images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from clipretrieval._util.checks import check_bool
from clipretrieval._util.progress import Progress, check_progress, open_progress
from clipretrieval.comparison.answers import Side, answer, answer_by_probes
from clipretrieval.comparison.calibration_part import CalibrationPart
from clipretrieval.comparison.cascade_answers import answer_by_cascades
from clipretrieval.comparison.indexes import StoreMakers, fill_indexes, needs, open_indexes
from clipretrieval.comparison.labels_ahead import NOTHING_ASKED, check_both, open_baseline
from clipretrieval.comparison.plan import Plan, check_plan
from clipretrieval.comparison.report import ZERO_SHOT, ComparisonReport, ComparisonRow
from clipretrieval.comparison.speed import Sample, Speed, measure_speed, open_clip_answerer
from clipretrieval.comparison.spool import Spool
from clipretrieval.encoding.base import StreamingEncoder
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.metrics import mcnemar_exact
from clipretrieval.heads.base import Head
from clipretrieval.heads.class_texts import STAGE
from clipretrieval.heads.weighting import Weighting
from clipretrieval.images.listing import listed
from clipretrieval.images.sources import (
    check_class_names,
    class_names,
    count_hint,
    has_named_labels,
    iter_raw,
)
from clipretrieval.images.stream import SkippedImage, check_on_error
from clipretrieval.retrieval.unusable import usable_batches
from clipretrieval.stores.registry import DEFAULT_STORE
from clipretrieval.types import FloatArray, Metric
from clipretrieval.zeroshot import TEXT_NEEDS, ZeroShotClassifier

__all__ = ["compare"]

OPEN_CLIP = "open_clip"
MOST_TIMED, MOST_SINGLES = 1000, 100
"""Test images that are timed together, and one by one, unless more are asked for, …"""
TIMED_SHARE, SINGLES_SHARE = 0.3, 0.1
"""… and the shares of the time of encoding that they may take, the former together with all answers."""


def compare(
    train: Any,
    test: Any,
    *,
    encoder: StreamingEncoder | None = None,
    stages: Sequence[str] | None = None,
    zero_shot: ZeroShotClassifier | bool | None = None,
    stores: Sequence[str] | StoreMakers = (DEFAULT_STORE,),
    heads: str | Head | Iterable[str | Head] = ("votes",),
    priors: Any = "equal",
    k: int | Iterable[int] = (1,),
    weights: Weighting | Iterable[Weighting] = ("uniform",),
    metric: Metric | str = "l2",
    probe: bool = False,
    cascades: Iterable[Sequence[str]] = (),
    calibration_share: float = 0.1,
    max_loss: float = 0.005,
    confidence: float = 0.95,
    budget: float | None = None,
    train_labels: Any = None,
    test_labels: Any = None,
    timed_images: int | None = None,
    single_images: int | None = None,
    open_clip: bool = True,
    resume: bool = False,
    on_error: str = "raise",
    progress: Progress | bool | None = None,
) -> ComparisonReport:
    """Measure stages, stores, heads and settings beside CLIP's own answer, accuracy against time.

    Training and test images are encoded once for all stages. The accuracies are those of
    `RetrievalClassifier.evaluate` and `ZeroShotClassifier.evaluate` on all test images. Seconds per 1,000
    images are measured for each classifier by itself afterwards, as the study did: `timeit`'s clock,
    up to 1,000 images, averaged; the inference apart from the query.

    Parameters
    ----------
    train, test
        Labelled images as `RetrievalClassifier.fit` takes them, such as folders with a sub-folder for each
        class.
    encoder : StagedEncoder, OnnxEncoder or FunctionEncoder, optional
        OpenAI's RN50 when left out. The latter two have one stage, and neither a baseline nor cascades.
    stages : sequence of str, optional
        ``pixel``, ``mid``, ``late`` and ``final`` when left out, or the encoder's only one.
    zero_shot : ZeroShotClassifier or bool, optional
        The baseline, on the same `encoder`. True takes the labels as the classes' names and the study's
        prompts.
    stores : sequence of str, or mapping of name to callable
        Registered names, or what makes an empty store for a stage. The stores are closed at the end.
    heads : str or Head, or several of them
        As for `RetrievalClassifier`; what they read is gathered in the one pass that fills the stores.
    priors : {"equal", "empirical"} or sequence of float
        Of all heads but the votes.
    k, weights
        One or several, combined, of the votes. ``"fused"`` has a row for each k above 1, or one with 20.
    metric : {"l2", "cosine", "ip"}
    probe : bool
        Whether each stage has a row of a linear probe too, as a reference: a logistic regression on the
        stage's vectors of the training images, with the C that cross-validation on them alone takes. It is
        trained, as no other row is, and has to be trained anew when an image is added.
    cascades : sequence of sequences of str, optional
        The stages of each `~clipretrieval.CascadeClassifier`, from shallow to deep; each has a row for each
        store and setting. It is made of the same stores, and answers the test images in a pass of its own.
    calibration_share : float
        The share of the training images that cascades are calibrated on, in (0, 1). They are drawn by
        content, but for the first one of each class, and no row is fitted on them. Test images among them
        are not used.
    max_loss, confidence, budget : float
        As for `CascadeClassifier.calibrate`.
    train_labels, test_labels : sequence, optional
        Where the images do not bring their labels.
    timed_images, single_images : int, optional
        How many test images, drawn at random with a seed, are timed together, and one by one. When left
        out, up to 1,000 and 100: as many as take a third, and a tenth, of the time that encoding took.
    open_clip : bool
        Whether open_clip as it comes is timed too, beside a `StagedEncoder`, which takes several times as
        long as all else that is timed: with the baseline's query, or else that of the first row at ``final``,
        or else none.
    resume : bool
        Go on with stores that hold a part of the images.
    on_error : {"raise", "skip"}
    progress : callable or True, optional
        Called with (images done, total or None) while images are encoded. True shows a bar.

    Returns
    -------
    ComparisonReport

    Raises
    ------
    InvalidInputError
        If an argument is none of the above, images or labels are missing, a test label is none of the
        classes of `zero_shot`, there are too few images to calibrate on, the test images of a cascade can be
        gone through only once, or, with `resume`, a store holds vectors of other images. All of it but the
        last shows before an image is read, as far as the labels are known then: those of folders and lists
        are.
    """
    started = time.perf_counter()
    encoder = encoder if encoder is not None else StagedEncoder()
    plan = check_plan(
        *(encoder, stages, stores, heads, priors, k, weights, metric, zero_shot, timed_images, single_images),
        *(cascades, calibration_share, (max_loss, confidence, budget), probe),
    )
    tower: Any = encoder  # a StagedEncoder wherever CLIP's answer or cascades are asked for
    open_clip, resume = check_bool(open_clip, "open_clip"), check_bool(resume, "resume")
    check_on_error(on_error)
    check_progress(progress)
    named = train_labels is None and has_named_labels(train)
    if train_labels is None and test_labels is None:
        check_class_names(class_names(train), class_names(test))
    train, test = listed(train), listed(test)
    if plan.cascades.exits and (hasattr(test, "__next__") or hasattr(test_labels, "__next__")):
        raise InvalidInputError(
            "a cascade answers the test images in a pass of its own, and these or their labels can be gone "
            "through only once; pass a list or a folder"
        )
    learnt, asked = check_both(train, train_labels, test, test_labels)
    if learnt is not None:
        plan.cascades.check_count(plan.cascades.share * len(learnt))
    baseline = open_baseline(zero_shot, tower, learnt, asked)
    seconds: dict[str, float] = {}
    indexed = open_indexes(encoder, plan.filled, plan.stores, plan.metric, resume, named, plan.moments)
    held_out = closing(Spool(plan.cascades.stages))
    with open_progress(progress, "encoding") as shown, indexed as indexes, held_out as held:
        part = CalibrationPart(plan.cascades.share, held) if plan.cascades.exits else None
        fit_timing, skipped = fill_indexes(
            encoder, indexes, train, train_labels, on_error=on_error, progress=shown, part=part
        )
        if part is not None:
            plan.cascades.check_count(len(part.rows()))
        seconds["fit"] = time.perf_counter() - started
        if baseline is None and zero_shot:
            known = indexes[0].open().classes.labels.tolist()
            baseline = open_baseline(zero_shot, tower, known, asked)
        sample = Sample(MOST_TIMED if plan.timed is None else plan.timed)
        spool = Spool(tuple(dict.fromkeys([*plan.stages, *([STAGE] if baseline is not None else [])])))
        with closing(spool):
            directed = {**needs(indexes), **(TEXT_NEEDS if baseline is not None else {})}
            passed_over = _encode(encoder, spool, sample, test, test_labels, directed, on_error, shown)
            seconds["encode_test"] = time.perf_counter() - started - sum(seconds.values())
            sides = answer(indexes, plan, spool, baseline, passed_over)
            answered = time.perf_counter() - started - sum(seconds.values())
            if part is not None:
                sides += answer_by_cascades(
                    tower, indexes, plan, part, spool, test, test_labels, on_error=on_error, progress=shown
                )
            if plan.probe:
                sides += answer_by_probes(indexes, plan, spool, passed_over)
            seconds["answer"] = time.perf_counter() - started - sum(seconds.values())
        encoding = seconds["fit"] + seconds["encode_test"]
        speeds, timed = _measure(
            *(encoder, sides, sample.images(spool.indices), plan, baseline, open_clip),
            most_s=TIMED_SHARE * encoding - answered,
            most_singles_s=SINGLES_SHARE * encoding,
        )
        whole = speeds.pop(OPEN_CLIP, None)
        seconds["measure"] = time.perf_counter() - started - sum(seconds.values())
        n_train = indexes[0].store.count()
        rows, name = _rows(sides, speeds, whole, n_train)
    return ComparisonReport(
        rows=rows,
        baseline=name,
        n_train=n_train,
        n_test=rows[0].report.n_test,
        timed_images=timed,
        single_images=len(rows[0].speed.latencies_s),
        n_calibration=0 if part is None else len(part.rows()),
        open_clip=whole,
        fit_timing=fit_timing,
        seconds={**seconds, "total": time.perf_counter() - started},
        skipped=(*skipped, *passed_over),
    )


def _encode(
    encoder: StreamingEncoder,
    spool: Spool,
    sample: Sample,
    test: Any,
    labels: Any,
    directed: Mapping[str, str],
    on_error: str,
    progress: Progress,
) -> list[SkippedImage]:
    """Encode the test images once, at all stages, into the spool."""
    total, skipped = count_hint(test), list[SkippedImage]()
    pairs = sample.passing(iter_raw(test, labels))
    stages = spool.stages
    batches = encoder.stream(pairs, stages=stages, on_error=on_error, skipped=skipped)
    for batch in usable_batches(
        batches, directed, encoder=type(encoder).__name__, on_error=on_error, skipped=skipped
    ):
        spool.add(batch)
        progress(len(spool) + len(skipped), total)
    if not len(spool):
        raise InvalidInputError(NOTHING_ASKED)
    return skipped


def _measure(
    encoder: StreamingEncoder,
    sides: list[Side],
    pictures: list[Any],
    plan: Plan,
    baseline: ZeroShotClassifier | None,
    open_clip: bool,
    most_s: float,
    most_singles_s: float,
) -> tuple[dict[str, Speed], int]:
    answerers = {side.name: side.answerer for side in sides}
    if open_clip and isinstance(encoder, StagedEncoder):
        answerers[OPEN_CLIP] = open_clip_answerer(encoder, _query_behind(sides, baseline))
    return measure_speed(
        answerers,
        pictures,
        MOST_SINGLES if plan.singles is None else plan.singles,
        most_s=most_s if plan.timed is None else None,
        most_singles_s=most_singles_s if plan.singles is None else None,
    )


def _query_behind(sides: list[Side], baseline: ZeroShotClassifier | None) -> Callable[[FloatArray], Any]:
    """Return what answers vectors of the whole tower: CLIP's prompts, the index at `final`, or nothing."""
    if baseline is not None:
        return sides[0].answerer.query
    ways = (side.answerer.query for side in sides if side.report.setting["stage"] == STAGE)
    return next(ways, len)


def _rows(
    sides: list[Side],
    speeds: Mapping[str, Speed],
    whole: Speed | None,
    n_train: int,
) -> tuple[tuple[ComparisonRow, ...], str]:
    """Compare every side with the baseline: the zero-shot answer, or else the last row of a stage."""
    clip = speeds.get(ZERO_SHOT)
    base = (
        sides[0]
        if clip is not None
        else [side for side in sides if side.calibration is None and not side.trained][-1]
    )
    rows = []
    for side in sides:
        speed = speeds[side.name]
        vectors = len(side.report.classes) if side.name == ZERO_SHOT else n_train
        rows.append(
            ComparisonRow(
                name=side.name,
                report=side.report,
                speed=speed,
                multiply_adds=side.multiply_adds,
                calibration=side.calibration,
                trained=side.trained,
                bytes=4 * side.dim * vectors if side.searches else 0,
                mcnemar=None if side is base else mcnemar_exact(side.report.correct, base.report.correct),
                speedup=clip.total_s / speed.total_s if clip else None,
                speedup_open_clip=whole.total_s / speed.total_s if whole else None,
            )
        )
    return tuple(rows), base.name
