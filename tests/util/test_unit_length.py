"""Rows of length one, whatever their size."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import normalize

from clipretrieval._util.unit_length import to_unit_length


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_what_scikit_learn_returns(dtype):
    rows = np.random.default_rng(0).normal(size=(50, 37)).astype(dtype)
    before = rows.copy()
    np.testing.assert_array_equal(to_unit_length(rows), normalize(rows), strict=True)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("scale", [2.0**-140, 1e-20, 1e-12, 1e-8, 1e-6, 1e8, 1e25, 2.0**120])
def test_no_row_is_too_short_or_too_long(scale):
    rows = np.array([[3, 4], [0, 0], [-4, 3]], dtype=np.float32) * np.float32(scale)
    expected = np.array([[0.6, 0.8], [0, 0], [-0.8, 0.6]])
    np.testing.assert_allclose(to_unit_length(rows), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_stays_nothing(shape):
    assert to_unit_length(np.zeros(shape, dtype=np.float32)).shape == shape
