"""Towers of open_clip's and timm's own modules, run unit by unit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from clipretrieval._util.foreign import is_instance
from clipretrieval.encoding.engine.activations import overwrite_activations
from clipretrieval.encoding.engine.attention import fuse_attention
from clipretrieval.encoding.engine.byte_patches import CENTER
from clipretrieval.encoding.engine.engine import Engine
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.stages import PIXEL_SIZE, Stage
from clipretrieval.encoding.towers.family import Family, UnitSpec
from clipretrieval.encoding.towers.module_copies import meta_copy, shared_copy
from clipretrieval.encoding.towers.module_unit import ModuleUnit, convert
from clipretrieval.encoding.towers.open_clip_transformer import OPEN_CLIP_TRANSFORMER
from clipretrieval.encoding.towers.timm_networks import TIMM_NETWORK
from clipretrieval.encoding.towers.timm_transformers import TIMM_EVA, TIMM_TRANSFORMER
from clipretrieval.encoding.towers.unsupported import OWN_ENCODER
from clipretrieval.encoding.towers.wiring import hash_wiring
from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.encoding.weights.modules import build_module, read_module, without_classifier
from clipretrieval.encoding.weights.tensor_fit import COUNTER
from clipretrieval.errors import InvalidInputError

__all__ = ["FAMILIES", "ModuleDesign"]

FAMILIES: tuple[Family, ...] = (OPEN_CLIP_TRANSFORMER, TIMM_TRANSFORMER, TIMM_EVA, TIMM_NETWORK)
"""The first that takes a tower says how it is taken apart."""

_CACHED_VALUES = 16 * 50 * 768
"""Activations after half of a tower that were fastest together: ViT-B-32 by sixteens, RN50 by threes."""


_FAILURES = (ValueError, TypeError, AttributeError, RuntimeError, AssertionError, IndexError)
"""What the libraries raise for shapes and sizes that do not go together."""


class ModuleDesign:
    """A tower of open_clip's or timm's modules; see `Design`.

    Its shapes are found without its weights, by a pass through a copy that has no values.

    Raises
    ------
    InvalidInputError
        If it is of no family.
    WeightsUnavailableError
        If its configuration describes no tower.
    """

    convolves_as_resnet = False

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._meta = _without_values(source)
        trunk = _trunk(self._meta)
        family = next((each for each in FAMILIES if each.matches(trunk)), None)
        name = source.model_cfg.get("timm", {}).get("name") or type(trunk).__name__
        if family is None:
            raise _unsupported(f"{name} is no image tower that this library knows")
        self.family = family
        self.image_size, self._built_for = source.size, family.built_for(trunk) or source.size
        self.size_multiple = family.size_multiple(trunk)
        if self.image_size < self.size_multiple:
            raise _unsupported(f"{name} takes images of {self.image_size} pixels, less than a patch")
        try:
            self._shaped = self._with_shapes(self.image_size)
            self.stages = self._named()
        except _FAILURES as error:
            # Asked only of what failed: a stem may well fold places into channels before it convolves.
            first = next((part for part in trunk.modules() if isinstance(part, nn.Conv2d)), None)
            if first is not None and first.in_channels != 3:
                raise _unsupported(
                    f"{name} has in_chans={first.in_channels}, and StagedEncoder makes RGB images"
                ) from error
            reason = (str(error) or repr(error)).splitlines()[0]
            raise _unsupported(f"{name} cannot be stopped ({reason})") from error
        self._work: dict[int, list[float]] = {}
        self.exits = self._quarters()

    def describe(self, depth: int | None = None) -> str:
        """See `Design`."""
        wiring = hash_wiring(self._meta, self._prefixes_from(len(self._shaped) if depth is None else depth))
        return f"{self._named_trunk()}, modules {wiring}"

    def _named_trunk(self) -> str:
        trunk = _trunk(self._meta)
        settings = self.family.describe(trunk)
        return f"{type(trunk).__name__}({settings})" if settings else type(trunk).__name__

    def _prefixes_from(self, depth: int) -> list[str]:
        """List how the names begin of tensors and modules behind a depth."""
        return [prefix for _, _, unit in self._shaped[depth:] for prefix in unit.tensor_prefixes]

    def multiply_adds(self, depth: int, image_size: int | None = None) -> float:
        """See `Design`; products of matrices, convolutions and attention are counted."""
        from torch.utils.flop_counter import FlopCounterMode

        size = self.image_size if image_size is None else image_size
        if size not in self._work:
            spent: list[float] = []
            x = torch.zeros(1, 3, size, size, device="meta")
            with torch.inference_mode(), torch.device("meta"):
                for unit in self._units(self._sized(self._meta, size), size):
                    with FlopCounterMode(display=False) as counter:
                        x = unit.forward(x)
                    spent.append(counter.get_total_flops() / 2e9)
            self._work[size] = spent
        return sum(self._work[size][:depth])

    def check_size(self, image_size: int) -> None:
        """See `Design`."""
        if image_size == self.image_size:
            return
        try:
            self._with_shapes(image_size)
        except _FAILURES as error:
            raise self._misfit(image_size, error) from error

    def inner_batch(self, image_size: int) -> int:
        """See `Design`."""
        scale = (image_size / self.image_size) ** 2
        values = math.prod(self._shaped[self.stages["mid"].depth - 1][1])
        return int(_CACHED_VALUES // max(1.0, values * scale))

    def read(self, seed: int) -> nn.Module:
        """See `Design`."""
        weights = read_module(self._source, seed)
        self._meta = meta_copy(weights)  # whose activations a checkpoint may have decided
        return weights

    def library_module(self, seed: int) -> nn.Module:
        """See `Design`."""
        return read_module(self._source, seed)

    def tensors_used(self, weights: nn.Module, stage: Stage) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Design`."""
        later = self._prefixes_from(stage.depth)
        # Buffers that no file holds count too: rotary positions are computed from settings of many names.
        for name, tensor in {**dict(weights.named_buffers()), **weights.state_dict()}.items():
            if not name.endswith(COUNTER) and not any(name.startswith(prefix) for prefix in later):
                yield name, tensor

    def engine(
        self,
        weights: nn.Module,
        depth: int,
        plan: InferencePlan,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
    ) -> Engine:
        """See `Design`."""
        tower = self._sized(shared_copy(weights), image_size)
        tower.to(plan.device)
        with torch.inference_mode(False), torch.no_grad():
            specs = self._units(tower, image_size)[:depth]
            for unit in specs if self.family is OPEN_CLIP_TRANSFORMER else ():
                for block in unit.modules if unit.is_block else ():
                    fuse_attention(block)
            if convert(specs, plan, plan.inner_batch * self._places(), mean, std):
                mean, std = [CENTER / 255] * 3, [1 / 255] * 3  # which leaves bytes less the center
            for unit in specs if plan.device == "cpu" else ():
                for module in unit.modules:
                    overwrite_activations(module)
        units: list[nn.Module] = [ModuleUnit(unit, plan).eval() for unit in specs]
        return Engine(units, plan, mean=mean, std=std, image_size=image_size)

    def _places(self) -> int:
        """Return the tokens of the middle of the tower, or the places of its grid."""
        _, shape, unit = self._shaped[self.stages["mid"].depth - 1]
        if unit.reduction == "patches":
            return shape[1]
        return shape[1] * shape[2] if unit.reduction == "channels_last" else shape[2] * shape[3]

    def _sized(self, tower: Any, image_size: int) -> Any:
        """Return a tower for images of a side; a copy where it was built for another."""
        if image_size == self._built_for:
            return tower
        made = shared_copy(tower)
        with torch.no_grad():
            self.family.resize(_trunk(made), image_size)
        return made

    def _misfit(self, image_size: int, error: Exception) -> InvalidInputError:
        reason = (str(error) or repr(error)).splitlines()[0]
        return InvalidInputError(
            f"image_size={image_size} is none that {self._named_trunk()} can be set to ({reason}); its own "
            f"is {self.image_size}"
        )

    def _units(self, tower: Any, image_size: int) -> list[UnitSpec]:
        """Take a tower apart, with open_clip's head behind timm's trunk."""
        trunk = _trunk(tower)
        units = self.family.units(trunk, image_size)
        if trunk is tower:
            return units
        own = [
            replace(unit, tensor_prefixes=tuple(f"trunk.{name}" for name in unit.tensor_prefixes))
            for unit in units
        ]
        pooled, head = own[-1], tower.head
        own[-1] = replace(
            pooled,
            forward=lambda x: head(pooled.forward(x)),
            modules=(*pooled.modules, head),
            tensor_prefixes=(*pooled.tensor_prefixes, "head."),
        )
        return own

    def _with_shapes(self, image_size: int) -> list[tuple[tuple[str, ...], tuple[int, ...], UnitSpec]]:
        """List each unit's names, the shape of what it returns for one image, and the unit."""
        found = []
        x = torch.zeros(1, 3, image_size, image_size, device="meta")
        with torch.inference_mode(), torch.device("meta"):
            for unit in self._units(self._sized(self._meta, image_size), image_size):
                x = unit.forward(x)
                found.append((unit.stages, tuple(x.shape), unit))
        if len(found[-1][1]) != 2:
            raise ValueError(f"its embedding has the shape {found[-1][1]}")
        self._blocks = [depth for depth, (_, _, unit) in enumerate(found, start=1) if unit.is_block]
        if not self._blocks:
            raise ValueError("it has no blocks")
        return found

    def _named(self) -> Mapping[str, Stage]:
        """List the stages, shallowest first."""
        stages = {"pixel": Stage("pixel", 0, "flatten", 3 * PIXEL_SIZE * PIXEL_SIZE, 1)}
        half = self._blocks[max(1, len(self._blocks) // 2) - 1]
        prefix, has_class = self.family.prefix_tokens(_trunk(self._meta))
        for depth, (names, shape, unit) in enumerate(self._shaped, start=1):
            for name in (*names, *(("mid",) if depth == half else ())):
                stages[name] = _stage(name, depth, unit, shape, self.image_size, prefix, has_class)
        return stages

    def _quarters(self) -> tuple[str, ...]:
        """Return stages after a quarter of the blocks, half, three quarters, and the last two."""
        count, names = len(self._blocks), dict[int, str]()
        for name, stage in self.stages.items():
            names.setdefault(stage.depth, name)
        early, later = (names[self._blocks[max(1, part * count // 4) - 1]] for part in (1, 3))
        return tuple(
            dict.fromkeys([early, "mid", later, "late", "final"] if count > 3 else ["mid", "late", "final"])
        )


def _stage(
    name: str,
    depth: int,
    unit: UnitSpec,
    shape: tuple[int, ...],
    image_size: int,
    prefix: int,
    has_class: bool,
) -> Stage:
    if unit.reduction == "none":
        return Stage(name, depth, "none", shape[1], 0)
    if unit.reduction == "patches":
        side = round((shape[1] - prefix) ** 0.5)
        if side * side + prefix != shape[1]:
            raise ValueError(f"{shape[1] - prefix} patches are no square")
        return Stage(name, depth, "patches", shape[2], image_size // side, prefix, has_class)
    channels, side = (shape[3], shape[1]) if unit.reduction == "channels_last" else (shape[1], shape[2])
    return Stage(name, depth, unit.reduction, channels, image_size // side)


def _trunk(tower: Any) -> Any:
    """Return what is taken apart: timm's model in open_clip's adapter, or the tower itself."""
    return tower.trunk if is_instance(tower, "open_clip.timm_model", "TimmModel") else tower


def _without_values(source: ModelSource) -> Any:
    """Build a tower without values."""
    if source.module is not None:
        visual = getattr(source.module, "visual", source.module)
        return without_classifier(meta_copy(visual))
    with torch.device("meta"):
        built = build_module(source)
    return without_classifier(meta_copy(built))


def _unsupported(what: str) -> InvalidInputError:
    return InvalidInputError(f"{what}. {OWN_ENCODER}")
