"""One encoder, seen at several stages."""

from __future__ import annotations

from clipretrieval.encoding.pooling import pooled_dim
from clipretrieval.encoding.staged import StagedEncoder
from clipretrieval.encoding.stages import find_stage

__all__ = ["stopped_at"]


def stopped_at(encoder: StagedEncoder, stage: str) -> StagedEncoder:
    """Return the same encoder, stopped at another stage; weights and engine are shared.

    Raises
    ------
    InvalidInputError
        If the model has no such stage.
    """
    found = find_stage(encoder.stages, stage)
    view = object.__new__(type(encoder))
    vars(view).update({**vars(encoder), "_stage": found, "_dim": pooled_dim(found, encoder.pooling)})
    return view
