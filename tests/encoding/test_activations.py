"""Activations in the memory of their input: the same values, and only where nobody else reads that."""

from __future__ import annotations

import copy

import pytest
import torch
from numpy.testing import assert_array_equal
from open_clip.transformer import QuickGELU
from timm.layers import Mlp
from timm.layers.activations import GELUTanh
from torch import nn

from clipretrieval.encoding.engine.activations import overwrite_activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", [nn.GELU, lambda: nn.GELU("tanh"), GELUTanh, QuickGELU, nn.ReLU])
def test_values_are_the_same_in_less_memory(activation, dtype):
    """To the bit; the activation itself is still one of its class."""
    plain = nn.Sequential(nn.Linear(5, 64), activation(), nn.Linear(64, 3)).to(dtype)
    with torch.no_grad():
        overwriting = copy.deepcopy(plain)
        overwrite_activations(overwriting)
        x = torch.linspace(-9, 9, 35, dtype=dtype).view(7, 5)
        before, hidden = x.clone(), plain[0](x)
        assert_array_equal(overwriting(x).float(), plain(x).float())
        assert_array_equal(x.float(), before.float())
        returned = overwriting[1](hidden)
    assert type(overwriting[1]) is type(plain[1])
    assert (returned is hidden) == (type(plain[1]) is not nn.ReLU)


def test_an_input_that_others_may_read_stays_as_it_is():
    """An activation that no linear layer comes before; timm's MLP has one before it."""
    first = nn.Sequential(nn.GELU(), nn.Linear(4, 4))
    mlp = Mlp(4, 8).eval()
    plain = copy.deepcopy(mlp)
    for module in (first, mlp):
        overwrite_activations(module)
    x = torch.linspace(-2, 2, 12).view(3, 4)
    before = x.clone()
    with torch.no_grad():
        first(x)
        assert_array_equal(x, before)
        assert_array_equal(mlp(x), plain(x))
        hidden = mlp.fc1(x)
        assert mlp.act(hidden) is hidden
