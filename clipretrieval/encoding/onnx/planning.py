"""Decide how an exported encoder runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clipretrieval.encoding.engine.inference_plan import InferencePlan, fitting_images
from clipretrieval.encoding.onnx.onnx_file import OnnxFile
from clipretrieval.encoding.onnx.runtimes.onnx_runtime_session import OnnxRuntimeSession
from clipretrieval.encoding.onnx.runtimes.openvino_session import OpenVinoSession
from clipretrieval.encoding.onnx.runtimes.runtime_session import RuntimeSession
from clipretrieval.errors import InvalidInputError

__all__ = ["PRECISIONS", "RUNTIMES", "plan_runtime"]

PRECISIONS = ("auto", "fp32", "bf16")
RUNTIMES: dict[str, type[RuntimeSession]] = {"onnxruntime": OnnxRuntimeSession, "openvino": OpenVinoSession}


def plan_runtime(
    path: Path, file: OnnxFile, runtime: str, precision: str, batch_size: int, cores: int
) -> InferencePlan:
    """Choose the precision, and how many images go together.

    Raises
    ------
    InvalidInputError
        If the file or this CPU does not have the precision.
    """
    session = RUNTIMES[runtime]
    known = session.precisions()
    if file.is_quantized and precision != "auto":
        raise InvalidInputError(
            f"the encoder {str(path)!r} computes in 8 bits, and precision={precision!r} is for one that was "
            "exported without int8=; leave it out"
        )
    chosen = "int8" if file.is_quantized else known[0] if precision == "auto" else precision
    if chosen == "int8" and chosen not in known:
        raise InvalidInputError(
            f"the encoder {str(path)!r} computes in 8 bits, and this CPU has no instructions for "
            "them (VNNI), may not use them, or does not tell: sums would overflow. Export it without int8= "
            "and index again"
        )
    if chosen not in known:
        others = [name for name in known if name != "int8"]
        why = (
            "this CPU has no instructions for it, or may not use them"
            if runtime == "openvino"
            else f"{session.title} computes in fp32 alone; use runtime='openvino'"
        )
        raise InvalidInputError(
            f"precision={chosen!r} is not to be had: {why}, or choose {' or '.join(map(repr, others))}"
        )
    plan = session.plan(chosen, fitting_images(file.image_size, file.architecture.width), cores)
    return replace(plan, inner_batch=min(batch_size, plan.inner_batch))
