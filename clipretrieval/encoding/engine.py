"""Run CLIP's image encoder as far as a stage needs, and no further."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from clipretrieval.encoding.stages import Stage
from clipretrieval.types import FloatArray

__all__ = ["Engine", "interpolate_positions"]

Unit = Callable[[torch.Tensor], torch.Tensor]


class Engine:
    """A private copy of an image encoder's first units, ready to run.

    Parameters
    ----------
    visual : open_clip.ModifiedResNet
        Left as it is.
    depth : int
        How many units are ever needed; later ones are not even copied.
    mean, std : sequence of float, length 3
        CLIP's normalisation, on values in [0, 1].
    image_size : int
        Side of the pictures that will come, in pixels.
    device : torch.device
    """

    def __init__(
        self,
        visual: nn.Module,
        depth: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.units = [copy.deepcopy(unit).to(device).eval() for unit in _units(visual)[:depth]]
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        positions = visual.get_parameter("attnpool.positional_embedding").detach().float()
        self.positions = interpolate_positions(positions, image_size // 32).to(device)
        for unit in self.units:
            if hasattr(unit, "positional_embedding"):
                unit.positional_embedding = nn.Parameter(self.positions, requires_grad=False)

    @torch.inference_mode()
    def run(self, pictures: torch.Tensor, stages: Iterable[Stage]) -> dict[str, FloatArray]:
        """Compute the vectors of some stages in one pass.

        Parameters
        ----------
        pictures : tensor of uint8, shape (n, size, size, 3)
        stages : iterable of Stage
            All but ``pixel``.

        Returns
        -------
        dict of str to ndarray of float32, shape (n, dim of the stage)
        """
        wanted = sorted(stages, key=lambda stage: stage.depth)
        x = pictures.to(self.device).permute(0, 3, 1, 2).float().div(255).sub(self.mean).div(self.std)
        vectors: dict[str, FloatArray] = {}
        done = 0
        for stage in wanted:
            for unit in self.units[done : stage.depth]:
                x = unit(x)
            done = stage.depth
            vectors[stage.name] = self._reduce(x, stage).float().cpu().numpy()
        return vectors

    def _reduce(self, x: torch.Tensor, stage: Stage) -> torch.Tensor:
        if stage.reduction == "spatial":
            return x.mean(dim=(2, 3))
        if stage.reduction == "tokens":
            tokens = x.flatten(2).transpose(1, 2)
            tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positions
            return tokens.mean(dim=1)
        return x


def interpolate_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Resize a positional embedding to another grid, as open_clip does for its vision towers.

    Parameters
    ----------
    positions : tensor of float32, shape (1 + old_side², channels)
        The first row belongs to the mean token and is kept.
    side : int

    Returns
    -------
    tensor of float32, shape (1 + side², channels)
        Bicubic, antialiased.
    """
    first, grid = positions[:1], positions[1:]
    old = round(len(grid) ** 0.5)
    if old == side:
        return positions
    grid = grid.T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, grid.reshape(grid.shape[1], -1).T])


def _units(visual: nn.Module) -> list[nn.Module]:
    """List the encoder's units in order: the stem, each bottleneck block, the attention pool."""
    parts: Any = visual
    stem = nn.Sequential(
        *(parts.conv1, parts.bn1, parts.act1),
        *(parts.conv2, parts.bn2, parts.act2),
        *(parts.conv3, parts.bn3, parts.act3),
        parts.avgpool,
    )
    blocks = [block for layer in (parts.layer1, parts.layer2, parts.layer3, parts.layer4) for block in layer]
    return [stem, *blocks, parts.attnpool]
