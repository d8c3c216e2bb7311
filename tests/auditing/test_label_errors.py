"""The mixture that tells which labels are probably wrong, on evidence of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from clipretrieval.auditing.evidence import Evidence
from clipretrieval.auditing.label_errors import LabelErrors, find_label_errors

CLASSES, EACH = 4, 30


def judged(unit: float, wrong: int, mistaken: int = 0) -> LabelErrors:
    """Judge labels of which the first few are wrong; of the next few, the head is mistaken by little."""
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(CLASSES, dtype=np.int32), EACH))
    scores = -unit * rng.uniform(1, 3, (len(truth), CLASSES))
    scores[np.arange(len(truth)), truth] = 0
    rows = slice(wrong, wrong + mistaken)
    scores[np.arange(wrong, wrong + mistaken), (truth[rows] + 1) % CLASSES] = 0.2 * unit
    scores -= scores.max(axis=1, keepdims=True)
    codes = truth.copy()
    codes[:wrong] = (truth[:wrong] + 1) % CLASSES
    alike = (truth[:, None] == truth) & ~np.eye(len(truth), dtype=np.bool_)
    near = np.stack([rng.choice(np.flatnonzero(row), 5, replace=False) for row in alike]).astype(np.int32)
    answers = np.argsort(-scores, axis=1).astype(np.int32)
    return find_label_errors(
        Evidence(
            near,
            np.ones(near.shape, dtype=np.float32),
            answers,
            np.take_along_axis(scores, answers, axis=1).astype(np.float32),
            scores[np.arange(len(codes)), codes].astype(np.float32),
        ),
        codes,
        CLASSES,
    )


@pytest.mark.parametrize("unit", [1e-3, 1.0, 4e4])
def test_the_unit_of_the_scores_does_not_matter(unit: float) -> None:
    """Scores of tens of thousands, as few images of many dimensions have, saturate nothing."""
    found, plain = judged(unit, 6, 12), judged(1.0, 6, 12)
    np.testing.assert_allclose(found.probabilities, plain.probabilities, atol=0.01)
    assert found.ranked()[:6].tolist() == plain.ranked()[:6].tolist()
    assert sorted(found.ranked()[:6].tolist()) == [0, 1, 2, 3, 4, 5]
    assert found.estimate.low < 6 < found.estimate.high
    assert found.estimate.listed <= 9  # and not the twelve that the head is mistaken about


@pytest.mark.parametrize("unit", [1.0, 4e4])
def test_no_interval_is_a_point(unit: float) -> None:
    """Nothing wrong among 120 labels excludes no share below three in a hundred."""
    estimate = judged(unit, 0).estimate
    assert (estimate.listed, estimate.low) == (0, 0)
    assert 3 < estimate.high < 5
    assert estimate.expected < 0.1


def test_scores_that_are_all_equal_have_a_unit() -> None:
    """What the head cannot tell at all is judged by the neighbors."""
    found = judged(0.0, 6)
    assert sorted(found.ranked()[:6].tolist()) == [0, 1, 2, 3, 4, 5]
