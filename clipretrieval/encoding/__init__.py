"""Images to vectors: CLIP's ResNet image encoder, stopped where it is told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.encoding.base import EncodedBatch, Encoder, KnownIds, KnownImage, StreamingEncoder
    from clipretrieval.encoding.engine.inference_plan import InferencePlan
    from clipretrieval.encoding.fingerprint import differences
    from clipretrieval.encoding.function_encoder import FunctionEncoder
    from clipretrieval.encoding.onnx.onnx_encoder import OnnxEncoder
    from clipretrieval.encoding.partial_pass import PartialPass
    from clipretrieval.encoding.staged_encoder import StagedEncoder
    from clipretrieval.encoding.stages import Architecture, Stage, stage_table
    from clipretrieval.encoding.text_encoder import TextEncoder

__all__ = [
    "Architecture",
    "EncodedBatch",
    "Encoder",
    "FunctionEncoder",
    "InferencePlan",
    "KnownIds",
    "KnownImage",
    "OnnxEncoder",
    "PartialPass",
    "Stage",
    "StagedEncoder",
    "StreamingEncoder",
    "TextEncoder",
    "differences",
    "stage_table",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "base": ["EncodedBatch", "Encoder", "KnownIds", "KnownImage", "StreamingEncoder"],
        "engine.inference_plan": ["InferencePlan"],
        "fingerprint": ["differences"],
        "function_encoder": ["FunctionEncoder"],
        "onnx.onnx_encoder": ["OnnxEncoder"],
        "partial_pass": ["PartialPass"],
        "staged_encoder": ["StagedEncoder"],
        "stages": ["Architecture", "Stage", "stage_table"],
        "text_encoder": ["TextEncoder"],
    },
)
