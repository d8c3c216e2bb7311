"""The sides of `towers.py speed`: the library's own module, and other engines that run it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from clipretrieval import StagedEncoder
from clipretrieval.encoding.engine.reduction import reduce
from clipretrieval.encoding.onnx.runtimes.openvino_session import import_openvino

__all__ = ["FromBytes", "Side", "library_sides", "onnxruntime_sides", "openvino_sides"]

Side = Callable[[int], object]
"""Encodes as many of the images, whole batches."""
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
        self.encoder, self.module = encoder, module
        self.dtype = next(module.parameters()).dtype
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
        x = (x.float() * self.scale + self.shift).permute(0, 3, 1, 2).to(self.dtype)
        if self.units is None:
            return self.module(x)  # type: ignore[no-any-return]
        for unit in self.units:
            x = unit.forward(x)
        return reduce(x, self.stage, "mean", None)


def library_sides(network: FromBytes, images: Images, way: str = "as it comes") -> Callable[[int], Side]:
    """Run torch in batches of a size: as the module comes, by autocast to bf16, or with all of it in bf16."""
    if way == "bf16":
        network = FromBytes(network.encoder, copy.deepcopy(network.module).bfloat16(), network.stage.name)
    casts = way == "autocast"

    def make(batch: int) -> Side:
        def run(count: int) -> None:
            network.requires_grad_(casts)  # what autocast has cast is kept of such weights alone
            cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=casts)
            with torch.no_grad() if casts else torch.inference_mode(), cast:
                for start in range(0, count, batch):
                    network(torch.from_numpy(images[start : start + batch]))
            network.requires_grad_(False)

        return run

    return make


def onnxruntime_sides(network: FromBytes, images: Images, folder: Path) -> Callable[[int], Side]:
    """Run ONNX Runtime in float32 in batches of a size."""
    import onnxruntime

    path = folder / "tower.onnx"
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX has no such operator
    try:
        torch.onnx.export(
            network,
            (torch.from_numpy(images[:2]),),
            str(path),
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
            dynamo=False,
        )
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    path.unlink()

    def make(batch: int) -> Side:
        def run(count: int) -> None:
            for start in range(0, count, batch):
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

        def run(count: int) -> None:
            for start in range(0, count, batch):
                queue.start_async({0: images[start : start + batch]})
            queue.wait_all()

        return run

    return make
