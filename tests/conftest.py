"""Settings and small real parts that every test shares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import settings
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# No test may fail for the speed of the machine, and every run tries the same examples.
settings.register_profile("clipretrieval", deadline=None, derandomize=True)
settings.load_profile("clipretrieval")

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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ModifiedResNet with two stages of two blocks, at 64×64 pixels."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same architecture with other weights."""
    return write_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Eight crops, of several shapes, of the two photographs that scikit-learn carries."""
    whole = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    boxes = [(0, 0, 427, 427), (200, 0, 640, 427), (100, 50, 300, 400), (300, 100, 620, 260)]
    return [photo.crop(box) for photo in whole for box in boxes]


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``test`` folders of crops from two photographs: two classes that can be told apart."""
    root = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    for name, file in (("temple", "china.jpg"), ("flower", "flower.jpg")):
        photo = load_sample_image(file)
        for split, count in (("train", 12), ("test", 5)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                top, left = rng.integers(0, 427 - 160), rng.integers(0, 640 - 160)
                crop = photo[top : top + 160, left : left + 160]
                Image.fromarray(crop).save(folder / f"{number:02}.{'png' if number % 2 else 'jpg'}")
    return root
