"""A classifier that was conformalized and calibrated once."""

from __future__ import annotations

import numpy.typing as npt
import pytest
from blobs import blobs, named

from clipretrieval import RetrievalClassifier

Part = tuple[npt.NDArray, list[int]]


@pytest.fixture(scope="session")
def fitted_on() -> Part:
    return blobs(160, 1)


@pytest.fixture(scope="session")
def held_out() -> Part:
    return blobs(200, 2)


@pytest.fixture(scope="session")
def others() -> Part:
    return blobs(150, 3)


@pytest.fixture(scope="session")
def asked() -> Part:
    return blobs(400, 4)


@pytest.fixture
def fitted(fitted_on: Part) -> RetrievalClassifier:
    return RetrievalClassifier(store="memory", head="discriminant").fit(fitted_on[0], named(fitted_on[1]))


@pytest.fixture
def trusted(fitted: RetrievalClassifier, held_out: Part, others: Part) -> RetrievalClassifier:
    """Of strings, calibrated and conformalized."""
    fitted.calibrate(others[0], named(others[1]))
    return fitted.conformalize(held_out[0], named(held_out[1]))
