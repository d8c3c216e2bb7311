"""The encoder's units, rebuilt for inference: batch norms folded, one query in the attention pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from clipretrieval.encoding.engine.convolutions import Convolution
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.stages import Stage

__all__ = ["Block", "QueryPool", "Stem", "build_units", "read_positions", "tensors_used"]


class Stem(nn.Module):
    """Three convolutions and an average pool: (n, 3, s, s) to (n, width, s/4, s/4).

    The first convolution runs in the plan's ``edge_dtype``.
    """

    def __init__(self, visual: Any, plan: InferencePlan, size: int) -> None:
        super().__init__()
        n, half = plan.inner_batch, size // 2
        width = visual.conv1.out_channels
        self.first = Convolution(
            visual.conv1, visual.bn1, True, plan, (n, 3, size, size), dtype=plan.edge_dtype
        )
        self.dtype = plan.dtype
        self.second = Convolution(visual.conv2, visual.bn2, True, plan, (n, width, half, half))
        self.third = Convolution(visual.conv3, visual.bn3, True, plan, (n, width, half, half), pool=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the stem."""
        out: torch.Tensor = self.third(self.second(self.first(x).to(self.dtype)))
        return out


class Block(nn.Module):
    """A bottleneck block: 1×1, 3×3, average pool where it strides, 1×1, and the shortcut added."""

    def __init__(self, block: Any, plan: InferencePlan, side: int) -> None:
        super().__init__()
        n, self.stride = plan.inner_batch, int(block.stride)
        after = side // self.stride
        channels, inner = block.conv1.in_channels, block.conv1.out_channels
        self.first = Convolution(block.conv1, block.bn1, True, plan, (n, channels, side, side))
        self.second = Convolution(
            block.conv2, block.bn2, True, plan, (n, inner, side, side), pool=self.stride
        )
        self.third = Convolution(block.conv3, block.bn3, True, plan, (n, inner, after, after), residual=True)
        self.shortcut: Convolution | None = None
        if block.downsample is not None:
            _, convolution, norm = block.downsample
            self.shortcut = Convolution(convolution, norm, False, plan, (n, channels, after, after))

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
    pool : open_clip.modified_resnet.AttentionPool2d
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

    def __init__(self, pool: Any, positions: torch.Tensor, plan: InferencePlan) -> None:
        super().__init__()
        heads, channels = int(pool.num_heads), positions.shape[1]
        size = channels // heads

        tensors = {
            "positions": positions,
            "query_weight": pool.q_proj.weight * size**-0.5,
            "query_bias": pool.q_proj.bias * size**-0.5,
            "key_weight": pool.k_proj.weight.view(heads, size, channels),
            "value_weight": pool.v_proj.weight.view(heads, size, channels).transpose(1, 2),
            "value_bias": pool.v_proj.bias,
            "out_weight": pool.c_proj.weight,
            "out_bias": pool.c_proj.bias,
        }
        self.heads = heads
        for name, tensor in tensors.items():
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
    visual: Any, depth: int, plan: InferencePlan, image_size: int, positions: torch.Tensor
) -> list[nn.Module]:
    """Rebuild the first `depth` units of an encoder for inference; `visual` stays as it is.

    Parameters
    ----------
    visual : open_clip.modified_resnet.ModifiedResNet
        In float32.
    depth : int
        See `clipretrieval.encoding.stages.Stage`.
    positions : tensor of float32, shape (1 + (image_size / 32)², channels)
        See `read_positions`.
    """
    blocks = [
        block for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4) for block in layer
    ]
    units: list[nn.Module] = [Stem(visual, plan, image_size)] if depth > 0 else []
    side = image_size // 4
    for block in blocks[: max(0, depth - 1)]:
        units.append(Block(block, plan, side))
        side //= int(block.stride)
    if depth > 1 + len(blocks):
        units.append(QueryPool(visual.attnpool, positions, plan))
    return [unit.eval() for unit in units]


def read_positions(visual: nn.Module, image_size: int) -> torch.Tensor:
    """Return the attention pool's positional embedding for images of a size.

    Resized, where it was made for another one, as open_clip does for its vision towers: bicubic, antialiased.

    Returns
    -------
    tensor of float32, shape (1 + (image_size / 32)², channels)
        The first row belongs to the mean token.
    """
    positions = visual.get_parameter("attnpool.positional_embedding").detach().float()
    side, old = image_size // 32, round((len(positions) - 1) ** 0.5)
    if old == side:
        return positions
    grid = positions[1:].T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], grid.reshape(grid.shape[1], -1).T])


def tensors_used(
    visual: nn.Module, stage: Stage, stages: Mapping[str, Stage]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors that run up to a stage; counters of training steps do not."""
    unit_depth = {name: found.depth for name, found in stages.items() if "." in name}
    for name, tensor in visual.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        block = ".".join(name.split(".")[:2])
        if name == "attnpool.positional_embedding":
            used = stage.reduction in ("tokens", "none")
        elif name.startswith("attnpool."):
            used = stage.reduction == "none"
        else:
            used = unit_depth.get(block, 1) <= stage.depth
        if used:
            yield name, tensor
