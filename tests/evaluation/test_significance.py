"""McNemar's exact test, held against the binomial distribution summed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clipretrieval import InvalidInputError
from clipretrieval.evaluation import mcnemar_exact

ANSWERS = st.integers(1, 60).flatmap(lambda n: st.tuples(hnp.arrays(np.bool_, n), hnp.arrays(np.bool_, n)))


@given(ANSWERS)
def test_p_value_is_the_binomial_tail_on_both_sides(case):
    """The p-value is the probability of counts at least as unequal, summed outcome by outcome."""
    first, second = case
    gained = sum(bool(a and not b) for a, b in zip(first, second, strict=True))
    lost = sum(bool(b and not a) for a, b in zip(first, second, strict=True))
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(n + 1) if abs(2 * i - n) >= abs(gained - lost)) / 2**n
    found = mcnemar_exact(first, second)
    assert (found.gained, found.lost) == (gained, lost)
    assert found.p_value == pytest.approx(tail, rel=1e-9)
    assert mcnemar_exact(second, first).p_value == pytest.approx(found.p_value, rel=1e-9)


def test_equal_answers_differ_by_nothing():
    """Classifiers that are right on the same images have a p-value of one."""
    right = np.array([True, False, True])
    assert mcnemar_exact(right, right).to_dict() == {"gained": 0, "lost": 0, "p_value": 1.0}


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_answers_that_cannot_be_paired_are_refused(first, second):
    """Both rows have to be of the same images, at least one."""
    with pytest.raises(InvalidInputError, match="two equally long rows"):
        mcnemar_exact(np.array(first, dtype=bool), np.array(second, dtype=bool))
