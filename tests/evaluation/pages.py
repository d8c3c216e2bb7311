"""Reports on answers drawn at random, as the tests of pages and plots share them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipretrieval import EvaluationReport, Explanation
from clipretrieval._util.timing import Timing
from clipretrieval.evaluation import Mistake
from clipretrieval.explanation import ExplainedNeighbor

SCRIPT = "<script>alert(1)</script>"
SETTING = {
    "model": "RN50",
    "stage": "late",
    "dim": 4,
    "store": "memory",
    "metric": "l2",
    "k": 5,
    "n_train": 9,
}
COMPARISON = [
    {
        "name": "zero-shot",
        "accuracy": 0.84,
        "low": 0.8,
        "high": 0.87,
        "inference_s_per_1000": 12.0,
        "k": None,
    },
    {
        "name": "mid",
        "accuracy": 0.72,
        "inference_s_per_1000": 7.0,
        "query_s_per_1000": 1.0,
        "speedup_open_clip": 3.0,
    },
    {"name": "late", "accuracy": 0.79, "bytes": 4096, "p_value": float("nan"), "speedup_open_clip": 2.0},
]


def made(
    n: int,
    names: Sequence[str],
    seed: int = 0,
    *,
    errors: float = 0.2,
    single: str | None = None,
    mistakes: Sequence[Mistake] = (),
) -> EvaluationReport:
    """Answers of which a share is wrong and lies farther; the class `single` has one picture."""
    rng = np.random.default_rng(seed)
    classes = np.array(names)
    true = rng.integers(0, len(names), n)
    if single is not None:
        others = np.flatnonzero(classes != single)
        true = others[rng.integers(0, len(others), n)]
        true[0] = names.index(single)
    wrong = rng.random(n) < errors
    answer = np.where(wrong, (true + rng.integers(1, len(names), n)) % len(names), true)
    distances = (rng.gamma(9, 0.05, n) + 0.2 * wrong).astype(np.float32)
    votes = rng.integers(1, 6, n)
    return EvaluationReport(
        y_true=classes[true],
        y_pred=classes[answer],
        distances=distances,
        classes=np.unique(classes),
        setting=SETTING,
        timing=Timing({"encode": 3.0, "search": 0.0}, {"encode": n, "search": n}),
        confidence=votes / 5,
        margin=np.maximum(2 * votes - 5, 0) / 5,
        mistakes=tuple(mistakes),
    )


def mistaken(answer: str, truth: str, path: str | None) -> Mistake:
    """A mistake with a neighbour whose file is there and one whose file is not."""
    neighbors = (
        ExplainedNeighbor("a", answer, 0.2, 1.0, path),
        ExplainedNeighbor("b", truth, 0.3, 0.0, "/nowhere/\udcff.png"),
        ExplainedNeighbor("c", truth, 0.4, 0.0, None),
    )
    return Mistake(7, truth, 0.2, Explanation(path, answer, 1.0, neighbors))
