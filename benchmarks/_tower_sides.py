"""The sides of `towers.py speed`: the library's own module, and other engines that run it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from clipretrieval import StagedEncoder
from clipretrieval.encoding.engine.reduction import reduce
from clipretrieval.encoding.onnx.runtimes.openvino_session import import_openvino

__all__ = ["FromBytes", "Side", "library_sides", "onnxruntime_sides", "openvino_sides"]

Side = Callable[[], None]
"""Encodes all images once."""
Images = npt.NDArray[np.uint8]


class FromBytes(nn.Module):
    """A library's own module from bytes to the vectors of a stage, for other engines to convert.

    Parameters
    ----------
    encoder : StagedEncoder
        Whose stage it stops at.
    module : nn.Module
        The library's, with the same weights.
    """

    def __init__(self, encoder: StagedEncoder, module: nn.Module, stage: str) -> None:
        super().__init__()
        self.module = module
        self.stage = encoder.stages[stage]
        # The library's module as it comes, run block by block where it is stopped.
        design = encoder._tower.design
        self.units = (
            None if stage == "final" else design._units(module, encoder.image_size)[: self.stage.depth]
        )
        mean, std = (torch.tensor(encoder.preprocessing[name]) for name in ("mean", "std"))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode bytes (n, side, side, 3)."""
        x = (x.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        if self.units is None:
            return self.module(x)  # type: ignore[no-any-return]
        for unit in self.units:
            x = unit.forward(x)
        return reduce(x, self.stage, "mean", None)


def library_sides(
    network: FromBytes, images: Images, dtype: torch.dtype | None = None
) -> Callable[[int], Side]:
    """Run torch as it comes in batches of a size, by autocast where a type is given."""

    def make(batch: int) -> Side:
        def run() -> None:
            cast: AbstractContextManager[Any] = (
                nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
            )
            with torch.inference_mode(), cast:
                for start in range(0, len(images), batch):
                    network(torch.from_numpy(images[start : start + batch]))

        return run

    return make


def onnxruntime_sides(network: FromBytes, images: Images, folder: Path) -> Callable[[int], Side]:
    """Run ONNX Runtime in float32 in batches of a size."""
    import onnxruntime

    path = folder / "tower.onnx"
    torch.onnx.export(
        network,
        (torch.from_numpy(images[:2]),),
        str(path),
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
        dynamo=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    path.unlink()

    def make(batch: int) -> Side:
        def run() -> None:
            for start in range(0, len(images), batch):
                session.run(None, {"x": images[start : start + batch]})

        return run

    return make


def openvino_sides(network: FromBytes, images: Images, precision: str) -> Callable[[int], Side]:
    """Run OpenVINO in batches of a size, compiled for it."""
    openvino = import_openvino()
    graph = openvino.convert_model(network, example_input=torch.from_numpy(images[:2]))
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
    }

    def make(batch: int) -> Side:
        model = graph.clone()
        model.reshape([batch, *images.shape[1:]])
        queue = openvino.AsyncInferQueue(openvino.compile_model(model, "CPU", settings))

        def run() -> None:
            for start in range(0, len(images), batch):
                queue.start_async({0: images[start : start + batch]})
            queue.wait_all()

        return run

    return make
