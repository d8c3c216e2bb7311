"""A module without values: its shapes can be computed, and its arithmetic counted, without its memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["shared_copy", "skeleton_of"]


def skeleton_of(module: nn.Module) -> Any:
    """Copy a module, with tensors of the same shapes on torch's meta device; in evaluation mode."""
    return _copied(module, lambda tensor: tensor.detach().to("meta"))


def shared_copy(module: nn.Module) -> Any:
    """Copy a module in evaluation mode; its tensors share values with the first until they are replaced."""
    return _copied(module, torch.Tensor.detach)


def _copied(module: nn.Module, convert: Any) -> nn.Module:
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(convert(parameter), requires_grad=False)
        for parameter in module.parameters()
    }
    memo.update((id(buffer), convert(buffer)) for buffer in module.buffers())
    made: nn.Module = copy.deepcopy(module, memo)
    return made.eval()
