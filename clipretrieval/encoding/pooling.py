"""The ways to make one vector of a grid of features, or of tokens."""

from __future__ import annotations

from clipretrieval._util.checks import check_choice
from clipretrieval.encoding.stages import Stage
from clipretrieval.errors import InvalidInputError

__all__ = ["GEM_FLOOR", "GEM_POWER", "GRID", "POOLINGS", "describe_pooling", "pooled_dim"]

POOLINGS = ("mean", "max", "gem", "tokens", "grid", "cls")
GEM_POWER = 3.0
GEM_FLOOR = 1e-6
GRID = 2


def pooled_dim(stage: Stage, pooling: str) -> int:
    """Return the dimension of a stage's vectors under a pooling.

    Raises
    ------
    InvalidInputError
        If there is no such pooling, or it is ``"cls"`` and the stage has no class token.
    """
    check_choice(pooling, "pooling", POOLINGS)
    if pooling == "cls" and stage.has_grid and not stage.has_class_token:
        others = ", ".join(name for name in POOLINGS if name != pooling)
        raise InvalidInputError(
            f"pooling='cls' takes the class token, and there is none at the stage {stage.name!r} of this "
            f"model; choose one of {others}"
        )
    return stage.dim * GRID * GRID if pooling == "grid" and stage.has_grid else stage.dim


def describe_pooling(stage: Stage, pooling: str) -> str | None:
    """Return what identifies a pooling in a fingerprint; None where a stage has none."""
    if not stage.has_grid:
        return None
    return f"gem(p={GEM_POWER:g})" if pooling == "gem" else pooling
