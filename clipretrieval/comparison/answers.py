"""The classifiers that are compared: each one's answers, and how to get them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipretrieval._util.timing import Timing
from clipretrieval.cascade.calibration import Calibration
from clipretrieval.comparison.indexes import StageIndex
from clipretrieval.comparison.linear_probe import fit_probe
from clipretrieval.comparison.plan import Plan
from clipretrieval.comparison.report import ZERO_SHOT
from clipretrieval.comparison.speed import Answerer
from clipretrieval.comparison.spool import Spool
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.evaluation.measurement import Measurement
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.heads.class_texts import STAGE
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.heads.voting import TEMPERATURE, Voting
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.types import FloatArray, no_neighbors
from clipretrieval.zeroshot import ZeroShotAnswers, ZeroShotClassifier

__all__ = ["Side", "answer", "answer_by_probes", "measure_settings"]


@dataclass(eq=False)
class Side:
    """One classifier.

    Attributes
    ----------
    name : str
    report : EvaluationReport
        Of its answers to all test images.
    answerer : Answerer
    dim : int
        Of the vectors that are searched.
    multiply_adds : float or None
        Of the encoder, in 10⁹ for an image on average; None where it does not tell.
    searches : bool
        Whether any are.
    calibration : Calibration or None
        Of a cascade.
    trained : bool
        Whether it is a linear probe.
    """

    name: str
    report: EvaluationReport
    answerer: Answerer
    dim: int
    multiply_adds: float | None
    searches: bool = True
    calibration: Calibration | None = None
    trained: bool = False


def answer(
    indexes: list[StageIndex],
    plan: Plan,
    spool: Spool,
    baseline: ZeroShotClassifier | None,
    skipped: Sequence[SkippedImage],
) -> list[Side]:
    """Answer all test images with each classifier but the cascades; each index is searched once.

    Parameters
    ----------
    indexes : list of StageIndex
    plan : Plan
    spool : Spool
        The encoded test images.
    baseline : ZeroShotClassifier or None
    skipped : sequence of SkippedImage
        Test images that were skipped.
    """
    sides = [] if baseline is None else [_zero_shot_side(baseline, spool, tuple(skipped))]
    for stage_index in indexes:
        if stage_index.stage in plan.stages:
            sides += _sides_of(stage_index, plan, spool, tuple(skipped))
    return sides


def measure_settings(
    stage_index: StageIndex, plan: Plan, spool: Spool, mistakes: int = 12
) -> tuple[LabelledIndex, list[tuple[DecisionRule, Measurement]]]:
    """Answer encoded images by each setting; the nearest k of more neighbors are the first of them."""
    index = stage_index.open()
    heads = _rules(stage_index, index, plan)
    return index, _measure(stage_index.stage, index, heads, spool, mistakes)


def answer_by_probes(
    indexes: list[StageIndex], plan: Plan, spool: Spool, skipped: Sequence[SkippedImage]
) -> list[Side]:
    """Train a linear probe on each stage's stored vectors, and answer all test images with it."""
    sides, first = list[Side](), next(iter(plan.stores))
    for stage_index in indexes:
        if stage_index.name == first and stage_index.stage in plan.stages:
            index = stage_index.open()
            ((rule, measurement),) = _measure(stage_index.stage, index, [fit_probe(index)], spool, 12)
            report = measurement.report(stage_index.name, timing=Timing(), skipped=tuple(skipped))
            name = plan.name_of_probe(stage_index.stage)
            sides.append(replace(_side(name, report, stage_index, index, rule), trained=True))
    return sides


def _measure(
    stage: str, index: LabelledIndex, heads: Sequence[DecisionRule], spool: Spool, mistakes: int
) -> list[tuple[DecisionRule, Measurement]]:
    numbers = index.number_classes()
    counts = [min(head.shown, index.count_for(head.shown)) for head in heads]
    measurements = [Measurement(index, head, numbers, mistakes=mistakes) for head in heads]
    for batch in spool.batches(stage):
        vectors = batch.vectors[stage]
        near = index.look_up(vectors, max(counts))
        index.check_manifest()
        batch = replace(batch, vectors={VECTORS: vectors})
        for count, measurement in zip(counts, measurements, strict=True):
            measurement.add(batch, near.first(count))
    return list(zip(heads, measurements, strict=True))


def _sides_of(
    stage_index: StageIndex, plan: Plan, spool: Spool, skipped: tuple[SkippedImage, ...]
) -> list[Side]:
    index, measured = measure_settings(stage_index, plan, spool)
    sides = []
    for setting, (head, measurement) in zip(plan.settings, measured, strict=True):
        # Without times: the passes are shared, and what a side takes by itself is measured apart.
        report = measurement.report(stage_index.name, timing=Timing(), skipped=skipped)
        name = plan.name(stage_index.stage, stage_index.name, setting)
        sides.append(_side(name, report, stage_index, index, head))
    return sides


def _side(
    name: str, report: EvaluationReport, stage_index: StageIndex, index: LabelledIndex, head: DecisionRule
) -> Side:
    encoder: Any = stage_index.encoder
    arithmetic = encoder.multiply_adds() if hasattr(encoder, "multiply_adds") else None
    answerer = Answerer(encoder.encode, _query(index, head))
    return Side(name, report, answerer, encoder.dim, arithmetic, searches=head.k > 0)


def _rules(stage_index: StageIndex, index: LabelledIndex, plan: Plan) -> list[DecisionRule]:
    """Return what decides by each setting of the plan; heads learn from what the index holds."""
    heads = [(setting.rule, setting.head) for setting in plan.settings if setting.rule is not None]
    statistics = stage_index.statistics or IndexStatistics()  # no head need read any
    learned = iter(statistics.fit_each(index, heads, plan.priors, 1) if heads else ())
    return [
        next(learned)
        if setting.weights is None
        else Voting(setting.k, setting.weights, TEMPERATURE, index.metric)
        for setting in plan.settings
    ]


def _zero_shot_side(baseline: ZeroShotClassifier, spool: Spool, skipped: tuple[SkippedImage, ...]) -> Side:
    answers = ZeroShotAnswers(baseline)
    for batch in spool.batches(STAGE):
        answers.add(baseline.cosines(batch.vectors[STAGE]), batch)
    report = answers.report(timing=Timing(), skipped=skipped)
    encoder = stopped_at(baseline.encoder_, STAGE)

    def query(vectors: FloatArray) -> Any:
        return baseline.cosines(vectors).argmax(axis=1)

    return Side(ZERO_SHOT, report, Answerer(encoder.encode, query), encoder.dim, encoder.multiply_adds())


def _query(index: LabelledIndex, head: DecisionRule) -> Any:
    numbers = index.number_classes()

    def query(vectors: FloatArray) -> Any:
        count = min(head.k, index.store.count())
        near = index.store.search(vectors, count) if count else no_neighbors(len(vectors))
        return head.decide(vectors, near, numbers).answers

    return query
