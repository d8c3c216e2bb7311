"""Graphs run by OpenVINO, on the CPU."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from clipretrieval._util.dependencies import require
from clipretrieval._util.forks import ForkLock
from clipretrieval.encoding.engine.inference_plan import MOST_STREAMS, InferencePlan
from clipretrieval.encoding.engine.instructions import WITH_BF16, WITH_VNNI, may_use, multiplies_bytes
from clipretrieval.encoding.onnx.runtimes.signal_stack import keeping_signal_stack
from clipretrieval.types import FloatArray

__all__ = ["OpenVinoSession", "import_openvino"]

_TOGETHER = 8
_TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What OpenVINO calls the type of all that is not in 8 bits."""
_TELEMETRY = "openvino_telemetry"
_importing = ForkLock()


class OpenVinoSession:
    """A graph that OpenVINO has loaded; see `RuntimeSession`.

    It is compiled when it is needed, for two numbers of images, which takes a tenth less time than a graph
    for any number: a whole pass, of which each stream computes one, and a single image on all threads.
    """

    title: ClassVar[str] = "OpenVINO"
    package: ClassVar[str] = "openvino"
    inputs: Mapping[str, Sequence[str | int]]
    outputs: Mapping[str, int]

    def __init__(self, content: bytes, plan: InferencePlan) -> None:
        self._plan = plan
        self._core = _make_core()
        self._model = self._core.read_model(content)
        self.inputs = {
            port.any_name: (port.element_type.to_dtype().name, *_lengths(port)[1:])
            for port in self._model.inputs
        }
        self.outputs = {port.any_name: _lengths(port)[-1] for port in self._model.outputs}
        self._compiling = threading.Lock()
        self._compiled: dict[int, Any] = {}
        self._idle: dict[int, SimpleQueue[Any]] = {}
        """Inference requests that no thread uses, by their number of images."""

    @classmethod
    def version(cls) -> str:
        return str(import_openvino().__version__)

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        # What it would choose by itself; with AVX-512 alone it has bf16 too, and that is slower.
        found = _make_core().get_property("CPU", "INFERENCE_PRECISION_HINT")
        floats = (
            ("bf16", "fp32") if found == import_openvino().Type.bf16 and may_use(*WITH_BF16) else ("fp32",)
        )
        return (*floats, "int8") if multiplies_bytes() and may_use(*WITH_VNNI) else floats

    @classmethod
    def plan(cls, precision: str, fitting: int, cores: int) -> InferencePlan:
        streams, together = min(cores, MOST_STREAMS), min(fitting, _TOGETHER)
        return InferencePlan(
            "cpu", precision, together, streams, cores // streams, cls.package, compiled=False
        )

    def run(self, names: Sequence[str], squares: npt.NDArray[np.uint8]) -> list[FloatArray]:
        whole = self._plan.inner_batch
        size = whole if 2 * len(squares) > whole else 1
        starts = range(0, len(squares), size)
        parts = [self._run(names, squares[start : start + size], size) for start in starts]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _run(self, names: Sequence[str], squares: npt.NDArray[np.uint8], size: int) -> list[FloatArray]:
        """Compute up to `size` squares, for which the graph is compiled."""
        missing = size - len(squares)
        if missing:
            squares = np.concatenate([squares, np.zeros((missing, *squares.shape[1:]), np.uint8)])
        request = self._take(size)
        found = request.infer({next(iter(self.inputs)): squares}, share_inputs=True)
        self._idle[size].put(request)
        return [found[name][: size - missing] for name in names]

    def _take(self, size: int) -> Any:
        """Return an inference request that no other thread uses."""
        with self._compiling:
            if size not in self._compiled:
                self._compiled[size], self._idle[size] = self._compile(size), SimpleQueue()
        try:
            return self._idle[size].get_nowait()
        except Empty:
            return self._compiled[size].create_infer_request()

    def _compile(self, size: int) -> Any:
        model = self._model.clone()
        model.reshape([size, *_lengths(model.input(0))[1:]])
        plan = self._plan
        settings = {
            "NUM_STREAMS": plan.streams if size == plan.inner_batch else 1,
            "INFERENCE_NUM_THREADS": plan.streams * plan.threads,
            "INFERENCE_PRECISION_HINT": _TYPES[plan.precision],
            # Other threads and processes have these cores too.
            "ENABLE_CPU_PINNING": False,
        }
        return self._core.compile_model(model, "CPU", settings)


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would tell Google Analytics of every import.

    Whoever has imported it before has decided that for this process.
    """
    with _importing.current:
        silenced = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
        if silenced:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as where it is not installed
        try:
            return require(
                "openvino",
                "OnnxEncoder with runtime='openvino'",
                "run: pip install \"clipretrieval[openvino]\", or use runtime='onnxruntime'",
            )
        finally:
            if silenced:
                del sys.modules[_TELEMETRY]


def _make_core() -> Any:
    """Return a Core that has loaded its plugin for CPUs, and that may be let go in any thread.

    With AMX the plugin gives the thread that loads it a stack for signals, and unmaps that as it goes. In
    another thread, or after a second plugin, it would leave the first one an address at which the next
    signal, a Ctrl-C say, overwrites whatever lies there by then (OpenVINO 2026.4).
    """
    core = import_openvino().Core()
    with keeping_signal_stack():
        core.get_property("CPU", "FULL_DEVICE_NAME")
    return core


def _lengths(port: Any) -> list[int]:
    """Return the lengths of an input or output, with -1 for one that may be any."""
    return [each.get_length() if each.is_static else -1 for each in port.partial_shape]
