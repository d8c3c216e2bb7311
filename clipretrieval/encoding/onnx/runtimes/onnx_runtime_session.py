"""Graphs run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from clipretrieval._util.dependencies import require
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.engine.instructions import multiplies_bytes
from clipretrieval.types import FloatArray

__all__ = ["OnnxRuntimeSession"]

_TOGETHER = 8
"""Images in a pass: more of them gain nothing, and their activations leave the cache."""


class OnnxRuntimeSession:
    """A graph that ONNX Runtime has loaded; see `RuntimeSession`."""

    title: ClassVar[str] = "ONNX Runtime"
    package: ClassVar[str] = "onnxruntime"
    inputs: Mapping[str, Sequence[str | int]]
    outputs: Mapping[str, int]

    def __init__(self, content: bytes, plan: InferencePlan) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = plan.threads
        # Threads that have nothing to do would spin on the cores that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.inputs = {
            each.name: (each.type.removeprefix("tensor(").removesuffix(")"), *each.shape[1:])
            for each in self._session.get_inputs()
        }
        self.outputs = {each.name: each.shape[-1] for each in self._session.get_outputs()}

    @classmethod
    def version(cls) -> str:
        return str(_runtime().__version__)

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        return ("fp32", "int8") if multiplies_bytes() else ("fp32",)

    @classmethod
    def plan(cls, precision: str, fitting: int, cores: int) -> InferencePlan:
        return InferencePlan("cpu", precision, _TOGETHER, 1, cores, cls.package, compiled=False)

    def run(self, names: Sequence[str], squares: npt.NDArray[np.uint8]) -> list[FloatArray]:
        found: list[FloatArray] = self._session.run(list(names), {next(iter(self.inputs)): squares})
        return found


def _runtime() -> Any:
    return require("onnxruntime", "OnnxEncoder", "run: pip install onnxruntime")
