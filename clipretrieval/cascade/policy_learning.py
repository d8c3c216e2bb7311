"""The rule by which images leave, learned from what a cascade's exits hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipretrieval.cascade.exit_policy import ExitEvidence, ExitPolicy
from clipretrieval.classifier import RetrievalClassifier

__all__ = ["HELD_OUT", "learn_policy"]

HELD_OUT = 5000
"""Stored images that a policy is learned on, at most."""
LEAST_HELD_OUT = 100


def learn_policy(exits: Sequence[RetrievalClassifier], certainty: str) -> ExitPolicy:
    """Learn the risk of leaving from stored images, each left out.

    Parameters
    ----------
    exits : sequence of RetrievalClassifier
        Fitted.
    certainty : str
        See `ExitPolicy`.

    Returns
    -------
    ExitPolicy
        Without regressions where a head cannot leave images out, or there are hardly any.
    """
    found = [each._held_out(HELD_OUT) for each in exits]
    told = [each for each in found if each is not None]
    shared = sorted(set.intersection(*(set(each.ids) for each in told))) if told else []
    if len(told) < len(found) or len(shared) < LEAST_HELD_OUT:
        return ExitPolicy(certainty, len(exits))
    places = [{name: row for row, name in enumerate(each.ids)} for each in told]
    rows = [[place[name] for name in shared] for place in places]
    answers, margins, distances, correct = (
        np.array([getattr(each, name)[row] for each, row in zip(told, rows, strict=True)])
        for name in ("answers", "margins", "distances", "correct")
    )
    return ExitPolicy.learn(ExitEvidence.from_answers(answers, margins, distances, correct), certainty)
