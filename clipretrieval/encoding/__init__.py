"""Images to vectors: CLIP's ResNet image encoder, stopped where it is told to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.encoding.base import EncodedBatch, Encoder, StreamingEncoder
    from clipretrieval.encoding.fingerprint import differences
    from clipretrieval.encoding.staged_encoder import StagedEncoder
    from clipretrieval.encoding.stages import Architecture, Stage, stage_table

__all__ = [
    "Architecture",
    "EncodedBatch",
    "Encoder",
    "Stage",
    "StagedEncoder",
    "StreamingEncoder",
    "differences",
    "stage_table",
]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "base": ["EncodedBatch", "Encoder", "StreamingEncoder"],
        "fingerprint": ["differences"],
        "staged_encoder": ["StagedEncoder"],
        "stages": ["Architecture", "Stage", "stage_table"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
