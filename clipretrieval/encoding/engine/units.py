"""The encoder's units, rebuilt for inference: batch norms folded, one query in the attention pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from clipretrieval.encoding.engine.convolutions import Convolution
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.stages import Architecture, Stage

__all__ = ["Block", "QueryPool", "Stem", "build_units", "read_positions", "tensors_used"]

Tensors: TypeAlias = Mapping[str, torch.Tensor]


class Stem(nn.Module):
    """Three convolutions and an average pool: (n, 3, s, s) to (n, width, s/4, s/4).

    The first convolution runs in the plan's ``edge_dtype``.
    """

    def __init__(self, tensors: Tensors, plan: InferencePlan, size: int) -> None:
        super().__init__()
        n, half = plan.inner_batch, size // 2
        inner = (n, tensors["conv1.weight"].shape[0], half, half)
        self.first = Convolution(
            tensors, "conv1", "bn1", True, plan, (n, 3, size, size), dtype=plan.edge_dtype, stride=2
        )
        self.dtype = plan.dtype
        self.second = Convolution(tensors, "conv2", "bn2", True, plan, inner)
        self.third = Convolution(tensors, "conv3", "bn3", True, plan, inner, pool=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the stem."""
        out: torch.Tensor = self.third(self.second(self.first(x).to(self.dtype)))
        return out


class Block(nn.Module):
    """A bottleneck block: 1×1, 3×3, average pool where it strides, 1×1, and the shortcut added."""

    def __init__(self, tensors: Tensors, name: str, stride: int, plan: InferencePlan, side: int) -> None:
        super().__init__()
        n, self.stride, after = plan.inner_batch, stride, side // stride
        inner, channels = tensors[f"{name}.conv1.weight"].shape[:2]

        def convolution(number: int, *shape: int, residual: bool = False, pool: int = 1) -> Convolution:
            names = f"{name}.conv{number}", f"{name}.bn{number}"
            return Convolution(tensors, *names, True, plan, (n, *shape), residual=residual, pool=pool)

        self.first = convolution(1, channels, side, side)
        self.second = convolution(2, inner, side, side, pool=stride)
        self.third = convolution(3, inner, after, after, residual=True)
        self.shortcut: Convolution | None = None
        if f"{name}.downsample.0.weight" in tensors:
            names = f"{name}.downsample.0", f"{name}.downsample.1"
            self.shortcut = Convolution(tensors, *names, False, plan, (n, channels, after, after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block; `x` may be overwritten."""
        y = self.second(self.first(x))
        identity = x
        if self.stride > 1:
            identity = functional.avg_pool2d(x, self.stride)
        if self.shortcut is not None:
            identity = self.shortcut(identity)
        out: torch.Tensor = self.third(y, identity)
        return out


class QueryPool(nn.Module):
    """CLIP's attention pool for the one query that is kept, the mean token's.

    With one query q, the score of token x under head h is q_h·(K_h x + b) = (K_hᵀ q_h)·x plus a constant
    that the softmax drops, and the weighted sum of values is V_h (Σ a x) + b. So neither keys nor values
    are ever computed for the tokens, which takes the pool's multiply-adds from 2·T·C² to about 2·T·C·heads.

    Parameters
    ----------
    tensors : mapping of str to tensor
        Those of an encoder, in float32.
    heads : int
    positions : tensor of float32, shape (1 + side², channels)
    """

    positions: torch.Tensor
    query_weight: torch.Tensor
    query_bias: torch.Tensor
    key_weight: torch.Tensor
    value_weight: torch.Tensor
    value_bias: torch.Tensor
    out_weight: torch.Tensor
    out_bias: torch.Tensor

    def __init__(self, tensors: Tensors, heads: int, positions: torch.Tensor, plan: InferencePlan) -> None:
        super().__init__()
        channels = positions.shape[1]
        size = channels // heads
        query, key, value, out = (f"attnpool.{letter}_proj" for letter in "qkvc")
        parts = {
            "positions": positions,
            "query_weight": tensors[f"{query}.weight"] * size**-0.5,
            "query_bias": tensors[f"{query}.bias"] * size**-0.5,
            "key_weight": tensors[f"{key}.weight"].view(heads, size, channels),
            "value_weight": tensors[f"{value}.weight"].view(heads, size, channels).transpose(1, 2),
            "value_bias": tensors[f"{value}.bias"],
            "out_weight": tensors[f"{out}.weight"],
            "out_bias": tensors[f"{out}.bias"],
        }
        self.heads = heads
        for name, tensor in parts.items():
            kept = tensor.detach().to(plan.device, plan.edge_dtype).contiguous()
            self.register_buffer(name, kept, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool (n, channels, side, side) to (n, output_dim)."""
        n, channels = x.shape[:2]
        grid = x.to(self.positions.dtype).flatten(2).transpose(1, 2)
        tokens = torch.cat([grid.mean(dim=1, keepdim=True), grid], dim=1) + self.positions
        query = functional.linear(tokens[:, 0], self.query_weight, self.query_bias)
        by_head = query.view(n, self.heads, -1).transpose(0, 1)
        probes = torch.bmm(by_head, self.key_weight).transpose(0, 1)
        scores = torch.bmm(probes, tokens.transpose(1, 2))
        shares = scores.float().softmax(dim=-1).to(tokens.dtype)
        summed = torch.bmm(shares, tokens).transpose(0, 1)
        values = torch.bmm(summed, self.value_weight).transpose(0, 1).reshape(n, channels)
        return functional.linear(values + self.value_bias, self.out_weight, self.out_bias)


def build_units(
    tensors: Tensors,
    architecture: Architecture,
    depth: int,
    plan: InferencePlan,
    image_size: int,
    positions: torch.Tensor,
) -> list[nn.Module]:
    """Build the first `depth` units of an encoder for inference.

    Parameters
    ----------
    tensors : mapping of str to tensor
        In float32.
    architecture : Architecture
    depth : int
        See `clipretrieval.encoding.stages.Stage`.
    positions : tensor of float32, shape (1 + (image_size / 32)², channels)
        See `read_positions`.
    """
    blocks = [
        (f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1)
        for layer, count in enumerate(architecture.layers, start=1)
        for block in range(count)
    ]
    units: list[nn.Module] = [Stem(tensors, plan, image_size)] if depth > 0 else []
    side = image_size // 4
    for name, stride in blocks[: max(0, depth - 1)]:
        units.append(Block(tensors, name, stride, plan, side))
        side //= stride
    if depth > 1 + len(blocks):
        units.append(QueryPool(tensors, architecture.heads, positions, plan))
    return [unit.eval() for unit in units]


def read_positions(tensors: Tensors, image_size: int) -> torch.Tensor:
    """Return the attention pool's positional embedding for images of a size.

    Resized, where it was made for another one, as open_clip does for its vision towers: bicubic, antialiased.

    Returns
    -------
    tensor of float32, shape (1 + (image_size / 32)², channels)
        The first row belongs to the mean token.
    """
    positions = tensors["attnpool.positional_embedding"]
    side, old = image_size // 32, round((len(positions) - 1) ** 0.5)
    if old == side:
        return positions
    grid = positions[1:].T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], grid.reshape(grid.shape[1], -1).T])


def tensors_used(
    tensors: Tensors, stage: Stage, stages: Mapping[str, Stage]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors that run up to a stage."""
    unit_depth = {name: found.depth for name, found in stages.items() if "." in name}
    for name, tensor in tensors.items():
        block = ".".join(name.split(".")[:2])
        if name == "attnpool.positional_embedding":
            used = stage.reduction in ("tokens", "none")
        elif name.startswith("attnpool."):
            used = stage.reduction == "none"
        else:
            used = unit_depth.get(block, 1) <= stage.depth
        if used:
            yield name, tensor
