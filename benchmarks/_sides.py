"""The encoders that `encode.py` compares: open_clip, its peers, and ours."""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _findings import processor
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clipretrieval import OnnxEncoder, StagedEncoder
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.onnx.runtimes.openvino_session import import_openvino
from clipretrieval.encoding.stage_output import StagePart
from clipretrieval.encoding.stages import STUDY_STAGES
from clipretrieval.encoding.towers.modified_resnet import build_engine
from clipretrieval.encoding.weights.model_source import LOCAL_DIR, resolve
from clipretrieval.encoding.weights.tower_tensors import load_visual

SIZE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
DEEP = STUDY_STAGES[1:]

Side = Callable[[int], int]
"""Encodes about as many images as it is told, at least a batch, and returns how many."""

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
"""The instruction sets that decide how fast an encoder is, as Linux calls them."""
_LIMITS = {
    "ONEDNN_MAX_CPU_ISA": "torch, our kernels and OpenVINO follow it, ONNX Runtime (MLAS) does not",
    "ATEN_CPU_CAPABILITY": "torch and our kernels follow it, the peers do not",
}
"""Variables that limit instructions, and whom."""


def lively_rn50(folder: Path) -> tuple[nn.Module, Path]:
    """Make RN50's image encoder with random weights, and write them to a file."""
    return lively_resnet("RN50", folder)


def lively_resnet(model: str, folder: Path) -> tuple[nn.Module, Path]:
    """Make a model's image encoder with random weights, or those in its folder, and write them to a file."""
    visual = load_visual(resolve(model, None))
    torch.manual_seed(0)
    for part in visual.modules():
        # Fresh batch norms would leave the branches at zero.
        if isinstance(part, nn.BatchNorm2d) and not model.startswith(LOCAL_DIR):
            for tensor, low, high in (
                (part.weight, 0.5, 1.5),
                (part.bias, -0.3, 0.3),
                (part.running_mean, -0.3, 0.3),
                (part.running_var, 0.5, 1.5),
            ):
                tensor.data.uniform_(low, high)
    path = folder / "weights.safetensors"
    save_file(visual.state_dict(), path)
    return visual, path


class UpToLayer3(nn.Module):
    """The graph of the ``mid`` stage from bytes, for the peers to convert: the work that our side does."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = copy.deepcopy(visual)
        self.register_buffer("scale", 1 / (255 * torch.tensor(STD)))
        self.register_buffer("shift", -torch.tensor(MEAN) / torch.tensor(STD))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (n, size, size, 3), run to the end of layer3, take the mean over height and width."""
        v: Any = self.visual
        x = (x.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        return v.layer3(v.layer2(v.layer1(v.stem(x)))).mean(dim=(2, 3))


def open_clip_side(visual: nn.Module, inputs: torch.Tensor, batch: int) -> Side:
    """Run open_clip's whole encoder as it comes, on inputs that are prepared already."""

    def side(count: int) -> int:
        some = inputs[: max(count, batch)]
        with torch.inference_mode():
            for part in some.split(batch):
                out = visual(part)
            out[0, 0].item()  # a GPU is done once a result is here
        return len(some)

    return side


def our_side(encoder: StagedEncoder, pictures: Any, stages: tuple[str, ...]) -> Side:
    """Run our encoder by its public face, from bytes: normalising and hashing are inside."""

    def side(count: int) -> int:
        vectors = encoder.encode_stages(pictures[:count], stages)
        return len(vectors[stages[0]])

    return side


def onnxruntime_side(visual: nn.Module, pictures: np.ndarray[Any, Any], batch: int, folder: Path) -> Side:
    """Run ONNX Runtime in fp32 on the ``mid`` graph."""
    import onnxruntime

    path, example = folder / f"mid-{batch}.onnx", torch.from_numpy(pictures[:batch])
    torch.onnx.export(UpToLayer3(visual).eval(), (example,), str(path), input_names=["x"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def side(count: int) -> int:
        parts = _batches(pictures, count, batch)
        for part in parts:
            session.run(None, {"x": part})
        return len(parts) * batch

    return side


def openvino_graph(visual: Any) -> Any:
    """Convert the ``mid`` graph for OpenVINO, for any batch."""
    example = torch.zeros(2, visual.image_size, visual.image_size, 3, dtype=torch.uint8)
    return import_openvino().convert_model(UpToLayer3(visual).eval(), example_input=example)


def openvino_side(graph: Any, pictures: np.ndarray[Any, Any], batch: int, precision: str) -> Side:
    """Run a graph by OpenVINO in throughput mode, with as many threads as torch has."""
    openvino = import_openvino()
    model = graph.clone()
    model.reshape([batch, *pictures.shape[1:]])
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
    }
    queue = openvino.AsyncInferQueue(openvino.compile_model(model, "CPU", settings))

    def side(count: int) -> int:
        parts = _batches(pictures, count, batch)
        for part in parts:
            queue.start_async({0: part})
        queue.wait_all()
        return len(parts) * batch

    return side


def exported_side(encoder: OnnxEncoder, pictures: np.ndarray[Any, Any]) -> Side:
    """Run an exported encoder by its public face, from bytes."""
    return lambda count: len(encoder.encode(pictures[:count]))


def _batches(pictures: np.ndarray[Any, Any], count: int, batch: int) -> list[np.ndarray[Any, Any]]:
    """Cut off whole batches, at least one: the peers' graphs have a fixed shape."""
    whole = max(1, min(count, len(pictures)) // batch)
    return [pictures[number * batch : (number + 1) * batch] for number in range(whole)]


def largest_differences(
    visual: Any, encoder: StagedEncoder, pictures: np.ndarray[Any, Any], device: str
) -> dict[str, float]:
    """Return by how much of their lengths our vectors differ from open_clip's, at most, stage by stage."""
    ours = encoder.encode_stages(pictures, DEEP)
    with torch.inference_mode():
        x = visual.layer3(visual.layer2(visual.layer1(visual.stem(prepared_inputs(pictures).to(device)))))
        last = visual.layer4(x)
        # ``late`` is the mean of the attention pool's tokens, positions and all
        late = last.mean((2, 3)) + visual.attnpool.positional_embedding.mean(0)
        theirs = dict(zip(DEEP, (x.mean((2, 3)), late, visual.attnpool(last)), strict=True))
    norm = np.linalg.norm
    return {
        name: float((norm(ours[name] - each, axis=1) / norm(each, axis=1)).max())
        for name, each in ((name, each.cpu().numpy()) for name, each in theirs.items())
    }


def count_multiply_adds(visual: Any, model: str) -> dict[str, float]:
    """Count, by running them, the multiply-adds a picture of open_clip's encoder and of our stages."""
    size = visual.image_size
    picture = np.zeros((1, size, size, 3), dtype=np.uint8)
    encoder = StagedEncoder(model, None, device="cpu")
    plain = InferencePlan("cpu", "fp32", 1, 1, 1, "torch", compiled=False)
    depth, numbers = encoder.stages["final"].depth, resolve(model, None).architecture
    engine = build_engine(
        visual.state_dict(), numbers, depth, plan=plain, mean=MEAN, std=STD, image_size=size
    )
    counts = {"open_clip": _flops(lambda: visual(torch.zeros(1, 3, size, size)))}
    for name in DEEP:
        part = StagePart(encoder.stages[name], "mean")
        counts[name] = _flops(lambda part=part: engine.run(picture, [part]))  # type: ignore[misc]
    return {name: flops / 2 for name, flops in counts.items()}


def _flops(work: Callable[[], Any]) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        work()
    return float(counter.get_total_flops())


def roofline_side(precision: str, device: str, sizes: Sequence[int], seconds: float) -> Callable[[], float]:
    """Return a function that measures the best square matrix product, in GFLOP/s, for about that time."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    pairs = [(torch.randn(n, n).to(device, dtype), torch.randn(n, n).to(device, dtype)) for n in sizes]

    def best() -> float:
        found = 0.0
        for a, b in pairs:
            n = len(a)
            times = max(1, round(7e9 * seconds / n**3))
            with torch.inference_mode():
                started = time.perf_counter()
                for _ in range(times):
                    product = torch.mm(a, b)
                product[0, 0].item()
                found = max(found, 2e-9 * n**3 * times / (time.perf_counter() - started))
        return found

    return best


def prepared_inputs(pictures: np.ndarray[Any, Any]) -> torch.Tensor:
    """Normalise bytes (n, size, size, 3) as CLIP does, for those who take float tensors."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255)
    return ((x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)).contiguous()


def rate(side: Side, count: int, times: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how many images a second a side encodes when it is given about `count`, so many times."""
    started = clock()
    done = sum(side(count) for _ in range(times))
    return done / (clock() - started)


def machine() -> dict[str, Any]:
    """Describe the processor, what limits it, and the versions."""
    listed: list[str] = []
    with contextlib.suppress(OSError):
        listed = Path("/proc/cpuinfo").read_text().split()
    limits = [f"{name}={os.environ[name]} ({who})" for name, who in _LIMITS.items() if name in os.environ]
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "instructions": " ".join(name for name in _INSTRUCTIONS if name in listed),
        "limited by": "; ".join(limits) or "nothing",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
