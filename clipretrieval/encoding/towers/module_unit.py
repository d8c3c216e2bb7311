"""One unit of a tower that is walked through, in the precision of a plan."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn

from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.engine.packed_linear import PackedLinear
from clipretrieval.encoding.engine.patch_product import PatchProduct
from clipretrieval.encoding.towers.family import Step

__all__ = ["ModuleUnit", "convert"]

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class ModuleUnit(nn.Module):
    """Runs a step: the ends in float32, and what lies between by torch's autocast.

    Under autocast products are taken in the plan's type, while what runs beside branches stays in float32.
    The weights of products are converted beforehand, see `convert`.
    """

    def __init__(self, step: Step, plan: InferencePlan) -> None:
        super().__init__()
        self.parts = nn.ModuleList(step.modules)
        self.walk = step.walk
        self.kind = torch.device(plan.device).type
        self.dtype = plan.dtype
        self.mixed = not step.exact and plan.dtype is not torch.float32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the step."""
        if self.mixed:
            with torch.autocast(self.kind, dtype=self.dtype, cache_enabled=False):
                return self.walk(x)
        return self.walk(x.float())


def convert(steps: list[Step], plan: InferencePlan, rows: int) -> None:
    """Convert the weights of products in some steps to a plan's type, in place, but for those of the ends.

    Parameters
    ----------
    rows : int
        Tokens, or places of a grid, that go through the steps together, for which products are laid out.
    """
    for step in steps if plan.device == "cpu" else ():
        for owner, name in step.full:
            _take_products(owner, name)
    for step in steps if plan.dtype is not torch.float32 else ():
        for owner, name in step.full:
            _keep_full(getattr(owner, name))
        for module in () if step.exact else step.modules:
            parts = list(module.modules())
            for part in parts:
                if isinstance(part, _WEIGHTED):
                    _round(part, plan.dtype)
            for part in parts if plan.kernels == "onednn" else ():
                _pack(part, rows)


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
