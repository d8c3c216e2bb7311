"""What the tests of vectors share."""

from __future__ import annotations

import numpy as np
import pytest
from own_encoder import Quarters

from clipretrieval import RetrievalClassifier


@pytest.fixture
def encoder():
    return Quarters()


@pytest.fixture
def fitted(encoder, class_folder):
    """A classifier of 24 images of two classes."""
    return RetrievalClassifier(encoder, "memory", k=3).fit(class_folder / "train")


@pytest.fixture(scope="session")
def clouds():
    """Vectors of three classes, their labels, and vectors to ask."""
    rng = np.random.default_rng(0)

    def draw(n):
        centers = np.repeat(2 * np.eye(3, 8), n, axis=0)
        return (centers + rng.normal(size=centers.shape)).astype(np.float32)

    return draw(60), np.repeat(["a", "b", "ü"], 60), draw(40)
