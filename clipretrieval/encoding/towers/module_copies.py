"""Copies of a module that take no memory for its values."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["meta_copy", "shared_copy"]


def meta_copy(module: nn.Module) -> Any:
    """Copy a module in evaluation mode, with tensors that have shapes alone, on torch's meta device.

    Passes through it tell the shapes of what it returns, and count its arithmetic.
    """
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
