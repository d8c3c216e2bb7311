"""RN50's image tower, which takes seconds to make, once for all tests."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import save_file
from tiny_models import enliven


@pytest.fixture(scope="session")
def rn50_tower() -> torch.nn.Module:
    """open_clip's own module, with random weights and lively batch norms."""
    vision = open_clip.get_model_config("RN50")["vision_cfg"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return enliven(ModifiedResNet(vision["layers"], 1024, heads=32, image_size=224, width=64))


@pytest.fixture(scope="session")
def rn50_file(rn50_tower: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights, as a checkpoint."""
    path = tmp_path_factory.mktemp("weights") / "rn50.safetensors"
    save_file(rn50_tower.state_dict(), path)
    return path
