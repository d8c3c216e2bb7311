"""What turns a store's contents into class scores: the built-in heads, and what one of your own has to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.heads.base import (
        Contents,
        Head,
        LearnedHead,
        OpenHead,
        PartedHead,
        Queries,
        StoredSample,
    )
    from clipretrieval.heads.choice import HEADS
    from clipretrieval.heads.discriminant import Discriminant
    from clipretrieval.heads.features import RandomFeatures
    from clipretrieval.heads.fused import Fused
    from clipretrieval.heads.quadratic import Quadratic
    from clipretrieval.heads.ridge import Ridge
    from clipretrieval.heads.statistics import ClassStatistics, Moments
    from clipretrieval.heads.whitening import Whitening

__all__ = [
    "HEADS",
    "ClassStatistics",
    "Contents",
    "Discriminant",
    "Fused",
    "Head",
    "LearnedHead",
    "Moments",
    "OpenHead",
    "PartedHead",
    "Quadratic",
    "Queries",
    "RandomFeatures",
    "Ridge",
    "StoredSample",
    "Whitening",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "base": ["Contents", "Head", "LearnedHead", "OpenHead", "PartedHead", "Queries", "StoredSample"],
        "choice": ["HEADS"],
        "discriminant": ["Discriminant"],
        "features": ["RandomFeatures"],
        "fused": ["Fused"],
        "quadratic": ["Quadratic"],
        "ridge": ["Ridge"],
        "statistics": ["ClassStatistics", "Moments"],
        "whitening": ["Whitening"],
    },
)
