"""The classifiers that are compared: each one's answers, and how to get them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipretrieval._util.timing import Timing
from clipretrieval.comparison import speed as _speed
from clipretrieval.comparison.indexes import Index
from clipretrieval.comparison.plan import Plan
from clipretrieval.comparison.report import ZERO_SHOT
from clipretrieval.comparison.spool import Remembering, Replay, Spool
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.evaluation.evaluation import evaluate
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.evaluation.zero_shot import Answers
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.retriever import open_ballot, vote
from clipretrieval.types import FloatArray
from clipretrieval.zeroshot import STAGE, ZeroShotClassifier

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["Side", "answer"]


@dataclass(eq=False)
class Side:
    """One classifier.

    Attributes
    ----------
    name : str
    report : EvaluationReport
        Of its answers to all test images. Without times: the passes are shared, and what a side takes by
        itself is measured apart.
    answerer : Answerer
    dim : int
        Of the vectors that are searched.
    """

    name: str
    report: EvaluationReport
    answerer: _speed.Answerer
    dim: int


def answer(
    indexes: list[Index],
    plan: Plan,
    spool: Spool,
    baseline: ZeroShotClassifier | None,
    skipped: Sequence[SkippedImage],
) -> list[Side]:
    """Answer all test images with each classifier; each index is searched once.

    Parameters
    ----------
    indexes : list of Index
    plan : Plan
    spool : Spool
        The encoded test images.
    baseline : ZeroShotClassifier or None
    skipped : sequence of SkippedImage
        Test images that were skipped.
    """
    sides = [] if baseline is None else [_zero_shot_side(baseline, spool, tuple(skipped))]
    for index in indexes:
        most = min(plan.most, index.store.count())
        remembered = Remembering(index.store, most)
        replay = Replay(index.encoder, spool)
        infer = index.encoder.encode
        for number, way in plan.settings:
            classifier = index.classifier(number, way)
            asked = index.classifier(number, way)
            asked.encoder, asked.store_ = replay, remembered
            report = replace(
                evaluate(asked, range(len(spool))), timing=Timing(), seconds=0.0, skipped=tuple(skipped)
            )
            name = plan.name(index.stage, index.name, number, way)
            answerer = _speed.Answerer(infer, _query(classifier))
            sides.append(Side(name, report, answerer, index.encoder.dim))
    return sides


def _zero_shot_side(baseline: ZeroShotClassifier, spool: Spool, skipped: tuple[SkippedImage, ...]) -> Side:
    answers = Answers(baseline)
    for batch in spool.batches(STAGE):
        answers.add(baseline.cosines(batch.vectors[STAGE]), batch)
    report = answers.report(timing=Timing(), skipped=skipped)
    encoder = stopped_at(baseline.encoder_, STAGE)

    def query(vectors: FloatArray) -> Any:
        return baseline.cosines(vectors).argmax(axis=1)

    return Side(ZERO_SHOT, report, _speed.Answerer(encoder.encode, query), encoder.dim)


def _query(classifier: RetrievalClassifier) -> Any:
    ballot = open_ballot(classifier)

    def query(vectors: FloatArray) -> Any:
        wanted = min(int(classifier.k), classifier.store_.count())
        return vote(classifier, classifier.store_.search(vectors, wanted), ballot).answers

    return query
