"""Small CLIPs with random weights, and a count of what they compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def enliven(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms the statistics of a trained network: fresh ones leave every branch at zero."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.weight, 0.5, 1.5),
                (part.bias, -0.3, 0.3),
                (part.running_mean, -0.3, 0.3),
                (part.running_var, 0.5, 1.5),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return module.eval()


def write_model(folder: Path, config: dict[str, Any] = TINY, seed: int = 0) -> str:
    """Write a small CLIP in open_clip's form and return its ``local-dir:`` name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = enliven(open_clip.CLIP(**config), seed)
    folder.mkdir(parents=True)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return f"local-dir:{folder}"


@contextmanager
def counted_convolutions() -> Iterator[list[torch.Size]]:
    """Collect the output shape of every convolution that runs inside the block."""
    shapes: list[torch.Size] = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if "convolution" in func.__name__ and "reorder" not in func.__name__:
                shapes.append(out.shape)
            return out

    with Counter():
        yield shapes
