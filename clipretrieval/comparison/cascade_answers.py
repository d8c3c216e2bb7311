"""Cascades over the indexes that were filled: calibrated, and really run on the test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from clipretrieval._util.progress import Progress
from clipretrieval._util.timing import Timing
from clipretrieval.cascade.cascade_classifier import CascadeClassifier
from clipretrieval.cascade.cascade_pass import CascadePass
from clipretrieval.cascade.exit_policy import ExitEvidence
from clipretrieval.comparison.answers import Side, measure_settings
from clipretrieval.comparison.calibration_part import CalibrationPart
from clipretrieval.comparison.indexes import StageIndex
from clipretrieval.comparison.plan import Plan, Setting
from clipretrieval.comparison.speed import Answerer
from clipretrieval.comparison.spool import Spool
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.report import EvaluationReport

__all__ = ["answer_by_cascades"]


def answer_by_cascades(
    encoder: StagedEncoder,
    indexes: Sequence[StageIndex],
    plan: Plan,
    part: CalibrationPart,
    asked: Spool,
    test: Any,
    labels: Any,
    *,
    on_error: str,
    progress: Progress,
) -> list[Side]:
    """Calibrate each cascade on the part that was held out, and have it answer all test images.

    Parameters
    ----------
    encoder : StagedEncoder
    indexes : sequence of StageIndex
        Of all its stages.
    plan : Plan
    part : CalibrationPart
    asked : Spool
        The encoded test images: none of them is calibrated on.
    test, labels, on_error, progress
        As for `compare`.

    Raises
    ------
    InvalidInputError
        If too few images are left to calibrate on, or the test images are others than before.
    """
    rows, sides = part.rows(without=asked.ids), list[Side]()
    for name in plan.stores:
        own = {each.stage: each for each in indexes if each.name == name}
        reports = {stage: _reports(own[stage], plan, part.spool) for stage in plan.cascades.stages}
        for exits in plan.cascades.exits:
            stores = {stage: own[stage].store for stage in exits}
            for place, setting in enumerate(plan.settings):
                evidence = ExitEvidence.from_reports([reports[stage][place] for stage in exits]).take(rows)
                made = _calibrated(encoder, stores, plan, setting, evidence)
                report = made.evaluate(test, labels, on_error=on_error, progress=progress, curve=False)
                if report.positions is None or report.positions.tolist() != asked.indices:
                    raise InvalidInputError(
                        "test gave other images when it was gone through again, for a cascade; pass images "
                        "that stay the same"
                    )
                sides.append(
                    Side(
                        plan.name(", ".join(exits), name, setting),
                        replace(report, setting={**report.setting, "store": name}),
                        _answerer(made),
                        sum(own[stage].encoder.dim for stage in exits),
                        report.mean_multiply_adds,
                        searches=setting.k > 0,
                        calibration=made.calibration_,
                    )
                )
    return sides


def _reports(stage_index: StageIndex, plan: Plan, spool: Spool) -> list[EvaluationReport]:
    """Return what each setting answers to the images that were held out."""
    _, measured = measure_settings(stage_index, plan, spool, mistakes=0)
    return [each.report(stage_index.name, timing=Timing(), skipped=()) for _, each in measured]


def _calibrated(
    encoder: StagedEncoder, stores: dict[str, Any], plan: Plan, setting: Setting, evidence: ExitEvidence
) -> CascadeClassifier:
    params: dict[str, Any] = (
        {"head": "votes", "weights": setting.weights} if setting.rule is None else {"head": setting.rule}
    )
    made = CascadeClassifier.from_stores(stores, encoder, k=max(1, setting.k), priors=plan.priors, **params)
    wanted = plan.cascades
    made._calibrate(evidence, wanted.max_loss, wanted.confidence, wanted.budget)
    return made


def _answerer(made: CascadeClassifier) -> Answerer:
    """Return what runs a cascade whole; its times are told apart by the pass itself."""

    def infer(images: list[Any]) -> tuple[list[Any], Timing]:
        asked = CascadePass(made.encoder, made.stages, made.exits_, made.policy_)
        answers = [said[-1].answer for _, all_said in asked.answers(images) for said in all_said]
        return answers, asked.timing

    def query_share(found: tuple[list[Any], Timing]) -> float:
        seconds = found[1].seconds
        return seconds.get("search", 0.0) / sum(seconds.values())

    return Answerer(infer, lambda found: found[0], query_share)
