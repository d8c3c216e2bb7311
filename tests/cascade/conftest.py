"""Cascades that are fitted once."""

from __future__ import annotations

import pytest
from cascades import STAGES, Crops, crops

from clipretrieval import CascadeClassifier, StagedEncoder


@pytest.fixture(scope="session")
def fitted_on() -> Crops:
    return crops(160, 1)


@pytest.fixture(scope="session")
def few() -> Crops:
    """Too few to learn from what leaving loses: then the margin decides, and a fit takes less time."""
    return crops(72, 1)


@pytest.fixture(scope="session")
def calibrated_on() -> Crops:
    return crops(120, 2)


@pytest.fixture(scope="session")
def asked() -> Crops:
    return crops(40, 3)


@pytest.fixture(scope="session")
def encoder(tiny_model: str) -> StagedEncoder:
    return StagedEncoder(tiny_model, precision="fp32", batch_size=16)


@pytest.fixture(scope="session")
def calibrated(encoder: StagedEncoder, fitted_on: Crops, calibrated_on: Crops) -> CascadeClassifier:
    """A cascade at whose exits some images leave; no test changes it."""
    cascade = CascadeClassifier(encoder, STAGES, head="discriminant", store="memory").fit(*fitted_on)
    return cascade.calibrate(*calibrated_on, max_loss=0.1, confidence=0.9)


@pytest.fixture(scope="session")
def uncalibrated(encoder: StagedEncoder, fitted_on: Crops) -> CascadeClassifier:
    """A cascade whose neighbors vote; no test changes it."""
    return CascadeClassifier(encoder, STAGES, head="votes", k=3, store="memory").fit(*fitted_on)
