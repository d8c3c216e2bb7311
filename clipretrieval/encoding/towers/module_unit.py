"""One unit of a tower of other libraries' modules, in the precision of a plan."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from clipretrieval._util.foreign import is_instance
from clipretrieval.encoding.engine.byte_patches import BytePatches
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.engine.packed_linear import PackedLinear
from clipretrieval.encoding.engine.patch_product import PatchProduct
from clipretrieval.encoding.towers.family import UnitSpec

__all__ = ["ModuleUnit", "convert"]

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class ModuleUnit(nn.Module):
    """Runs a unit: the ends in float32, and what lies between by torch's autocast.

    Under autocast products are taken in the plan's type, while what runs beside branches stays in float32.
    The weights of products are converted beforehand, see `convert`.
    """

    def __init__(self, unit: UnitSpec, plan: InferencePlan) -> None:
        super().__init__()
        self.parts = nn.ModuleList(unit.modules)
        self.run = unit.forward
        self.kind = torch.device(plan.device).type
        self.dtype = plan.dtype
        self.mixed = not unit.float32_only and plan.dtype is not torch.float32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the unit."""
        if self.mixed:
            with torch.autocast(self.kind, dtype=self.dtype, cache_enabled=False):
                return self.run(x)
        return self.run(x.float())


def convert(
    units: list[UnitSpec], plan: InferencePlan, rows: int, mean: Sequence[float], std: Sequence[float]
) -> bool:
    """Convert the weights of products in some units to a plan's type, in place, but for those of the ends.

    Parameters
    ----------
    rows : int
        Tokens, or places of a grid, that go through the units together, for which products are laid out.
    mean, std : sequence of float, length 3
        By which images are normalized.

    Returns
    -------
    bool
        Whether the first unit takes bytes less `CENTER` instead of normalized images.
    """
    packs = plan.kernels == "onednn"
    takes_bytes = False
    for unit in units if plan.device == "cpu" else ():
        for owner, name in unit.float32_parts:
            place = _embedding(owner, name) if packs else None
            if place is not None:
                setattr(*place, BytePatches(getattr(*place), mean, std, rows))
                takes_bytes = True
            else:
                _take_products(owner, name)
    for unit in units if plan.dtype is not torch.float32 else ():
        for owner, name in unit.float32_parts:
            _keep_full(getattr(owner, name))
        for module in () if unit.float32_only else unit.modules:
            parts = list(module.modules())
            for part in parts:
                if isinstance(part, _WEIGHTED):
                    _round(part, plan.dtype)
            for part in parts if packs else ():
                _pack(part, rows)
    return takes_bytes


def _embedding(owner: nn.Module, name: str) -> tuple[nn.Module, str] | None:
    """Return where a convolution lies that is given the images as they come, if it can take bytes."""
    part: Any = getattr(owner, name)
    plain = is_instance(part, "timm.layers.patch_embed", "PatchEmbed") and type(part).__name__ == "PatchEmbed"
    if plain and not part.dynamic_img_pad:
        owner, name, part = part, "proj", part.proj
    return (owner, name) if PatchProduct.fits(part) and part.in_channels == 3 else None


def _round(part: Any, dtype: torch.dtype) -> None:
    for name in ("weight", "bias"):
        tensor = getattr(part, name, None)
        if tensor is not None:
            setattr(part, name, nn.Parameter(tensor.to(dtype), requires_grad=False))


def _pack(module: nn.Module, rows: int) -> None:
    """Replace a module's own linear layers by packed ones, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and type(child).forward is nn.Linear.forward:
            setattr(module, name, PackedLinear(child, rows))


def _take_products(owner: nn.Module, name: str) -> None:
    """Replace a part of a module, or convolutions within it, by products of their patches, in place."""
    part = getattr(owner, name)
    if PatchProduct.fits(part):
        setattr(owner, name, PatchProduct(part))
        return
    for inner, _ in part.named_children():
        _take_products(part, inner)


def _keep_full(module: nn.Module) -> None:
    """Have a module compute in float32 whatever autocast says, in place."""
    inner = module.forward

    def forward(self: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return inner(x.float(), *args, **kwargs)

    module.forward = types.MethodType(forward, module)
