"""CLIP's ResNets, open_clip's ``ModifiedResNet``: their tensors alone, and the library's own units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from clipretrieval.encoding.engine.inference_plan import InferencePlan, fitting_images
from clipretrieval.encoding.stages import Architecture, Stage, stage_table
from clipretrieval.encoding.weights.model_source import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipretrieval.encoding.engine.engine import Engine
    from clipretrieval.encoding.weights.tower_tensors import TowerTensors

__all__ = ["EXITS", "ModifiedResNetDesign", "build_engine"]

EXITS = ("layer1", "layer2", "mid", "late", "final")


class ModifiedResNetDesign:
    """A ResNet of CLIP's, known without torch; see `Design`."""

    exits: tuple[str, ...] = EXITS
    size_multiple = 32
    convolves_as_resnet = True

    def __init__(self, source: ModelSource) -> None:
        self._source, self._architecture = source, source.architecture
        self.image_size = source.size
        self.stages: Mapping[str, Stage] = stage_table(self._architecture)

    def describe(self, depth: int | None = None) -> str:
        """See `Architecture.describe`."""
        return self._architecture.describe(depth)

    def multiply_adds(self, depth: int, image_size: int | None = None) -> float:
        """See `Architecture.multiply_adds`."""
        return self._architecture.multiply_adds(depth, image_size)

    def check_size(self, image_size: int) -> None:
        """Take any; see `Design`."""

    def inner_batch(self, image_size: int) -> int:
        """See `Design`."""
        return fitting_images(image_size, self._architecture.width)

    def read(self, seed: int) -> TowerTensors:
        """See `Design`."""
        from clipretrieval.encoding.weights.tower_tensors import read_tower

        return read_tower(self._source, seed)

    def tensors_used(self, weights: TowerTensors, stage: Stage) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Design`."""
        from clipretrieval.encoding.engine.units import tensors_used

        return tensors_used(weights, stage, self.stages)

    def engine(
        self,
        weights: TowerTensors,
        depth: int,
        plan: InferencePlan,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
    ) -> Engine:
        """See `Design`."""
        return build_engine(
            weights, self._architecture, depth, plan, mean=mean, std=std, image_size=image_size
        )

    def library_module(self, seed: int) -> nn.Module:
        """See `Design`."""
        from clipretrieval.encoding.weights.tower_tensors import load_visual

        return load_visual(self._source, seed)


def build_engine(
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    depth: int,
    plan: InferencePlan,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
) -> Engine:
    """Build the first units of a ResNet; later ones are not even converted.

    Parameters
    ----------
    tensors : mapping of str to tensor
        The encoder's, in float32, as open_clip names them; left as they are.
    architecture : Architecture
        Whose they are.
    depth : int
        How many units are ever needed.
    """
    import torch

    from clipretrieval.encoding.engine.engine import Engine
    from clipretrieval.encoding.engine.units import build_units, read_positions

    positions = read_positions(tensors, image_size)
    with torch.no_grad():
        units = build_units(tensors, architecture, depth, plan, image_size, positions)
    return Engine(units, plan, mean=mean, std=std, image_size=image_size, positions=positions)
