"""Why a cascade answers as it does: where an image left, and how sure the exits before were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from clipretrieval._util.labels import stored_labels
from clipretrieval._util.text import shortened
from clipretrieval.cascade.cascade_pass import ExitAnswer, PassedExit
from clipretrieval.cascade.exit_policy import ExitPolicy
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.explanation import WIDEST_LABEL, Explanation, explain_found, explained_parts
from clipretrieval.heads.choice import HEADS
from clipretrieval.types import Neighbors, no_neighbors

__all__ = ["CascadeExplanation", "ExitStep", "explain_answers"]


@dataclass(frozen=True)
class ExitStep:
    """What one exit said of an image.

    Attributes
    ----------
    stage : str
    answer : bool, int, float or str
    share, margin : float
        The answer's probability, and how far it is ahead of the second, in [0, 1].
    agrees : bool or None
        Whether the exit before gave the same answer; None at the first.
    risk : float or None
        How probable it was held that only the last exit is right, in [0, 1]; None at the last exit.
    threshold : float or None
        The highest risk at which an image leaves; None where none leaves before the last exit, and at that.
    """

    stage: str
    answer: Any
    share: float
    margin: float
    agrees: bool | None
    risk: float | None
    threshold: float | None


@dataclass(frozen=True)
class CascadeExplanation(Explanation):
    """What a cascade answers for one image, where it stopped, and the neighbors at that exit.

    Attributes
    ----------
    steps : tuple of ExitStep
        Of each exit that the image came to; it left at the last of them.
    """

    steps: tuple[ExitStep, ...] = ()

    @property
    def stage(self) -> str:
        """The exit where the image left."""
        return self.steps[-1].stage

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {**super().to_dict(), "stage": self.stage, "steps": [vars(each).copy() for each in self.steps]}

    def __str__(self) -> str:
        """Return the answer, the neighbors, and a line for each exit."""
        return "\n".join([super().__str__(), *map(_step_words, self.steps)])

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, stage={self.stage!r})"


def explain_answers(
    exits: Sequence[PassedExit],
    stages: Sequence[str],
    policy: ExitPolicy,
    said: Sequence[Sequence[ExitAnswer]],
    *,
    k: int,
    by: str = "share",
    top: int = 1,
) -> list[CascadeExplanation]:
    """Explain answers, whose neighbors and vectors were kept.

    Parameters
    ----------
    exits : sequence of PassedExit
    stages : sequence of str
    policy : ExitPolicy
    said : sequence of sequence of ExitAnswer, length n
        Of each image, the answers of all exits that it came to.
    k : int
        Neighbors to show, where there should be more than voted.
    by : {"share", "margin", "distance"}
    top : int
        The most classes in `Explanation.top`; more than one where the probabilities of all were kept.
    """
    found = dict[int, CascadeExplanation]()
    for place, each in enumerate(exits):
        rows = [row for row, answers in enumerate(said) if answers[-1].place == place]
        left = [said[row][-1] for row in rows]
        queries = [answer.query for answer in left if answer.query is not None]
        kept = [answer.near for answer in left if answer.near is not None]
        if not rows:
            continue
        vectors = np.concatenate([query.vectors[VECTORS] for query in queries])
        near = _neighbors(each, kept, vectors, k)
        answered = each.numbers.of_labels(
            stored_labels([answer.answer for answer in left], each.numbers.kind)
        )
        explanations = explain_found(
            each.index,
            each.head,
            near,
            queries=[query.sources[0] for query in queries],
            answers=[answer.answer for answer in left],
            shares=[answer.share for answer in left],
            margins=[answer.margin for answer in left],
            vectors=vectors,
            parts=explained_parts(each.head.parts(vectors, near, each.numbers), answered, each.numbers),
            tops=None if each.head.describe()["head"] == HEADS[0] else _top_classes(each, left, top),
            shown=k,
            by=by,
        )
        for row, explanation in zip(rows, explanations, strict=True):
            told = {one.name: getattr(explanation, one.name) for one in fields(Explanation)}
            steps = tuple(_step(answer, stages, policy) for answer in said[row])
            found[row] = CascadeExplanation(**told, steps=steps)
    return [found[row] for row in range(len(said))]


def _neighbors(at: PassedExit, kept: Sequence[Neighbors], vectors: Any, k: int) -> Neighbors:
    """Return what was found, or, where the head reads no neighbors, what is to be shown."""
    if kept[0].ids.shape[1]:
        return Neighbors(
            *(
                np.concatenate([getattr(near, name) for near in kept])
                for name in ("ids", "distances", "labels")
            )
        )
    width = min(max(k, at.head.shown), at.index.store.count()) if at.index.is_searchable else 0
    return at.index.look_up(vectors, width) if width else no_neighbors(len(vectors))


def _top_classes(
    at: PassedExit, left: Sequence[ExitAnswer], most: int
) -> list[tuple[tuple[Any, float], ...]]:
    """Return the most probable classes of each image, the answer first."""
    found = list[tuple[tuple[Any, float], ...]]()
    for answer in left:
        shares = answer.probabilities
        if shares is None:
            found.append(((answer.answer, answer.share),))
            continue
        labels = at.numbers.labels(np.arange(len(shares)))
        order = np.lexsort((np.arange(len(shares)), -shares, labels != answer.answer))[:most]
        kept = order[shares[order] > 0]
        found.append(tuple(zip(labels[kept].tolist(), shares[kept].tolist(), strict=True)))
    return found


def _step(answer: ExitAnswer, stages: Sequence[str], policy: ExitPolicy) -> ExitStep:
    last = answer.place == len(stages) - 1
    return ExitStep(
        stages[answer.place],
        answer.answer,
        answer.share,
        answer.margin,
        answer.agrees if answer.place else None,
        None if last else answer.risk,
        None if last else policy.threshold,
    )


def _step_words(step: ExitStep) -> str:
    """Return a step as a line of text."""
    text = f"  {step.stage}: {shortened(step.answer, WIDEST_LABEL)} {step.share:.1%}"
    if step.risk is None:
        return f"{text}, the last exit"
    if step.threshold is None:
        return f"{text}, went on: nothing leaves before it is calibrated"
    went = "left" if step.risk <= step.threshold else "went on"
    sign = "≤" if went == "left" else ">"
    return f"{text}, {went}: risk {step.risk:.4f} {sign} {step.threshold:.4f}"
