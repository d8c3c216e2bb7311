"""One vector of a grid of features, or of tokens."""

from __future__ import annotations

import torch
from torch.nn import functional

from clipretrieval.encoding.pooling import GEM_FLOOR, GEM_POWER, GRID
from clipretrieval.encoding.stages import Stage

__all__ = ["reduce"]


def reduce(x: torch.Tensor, stage: Stage, pooling: str, positions: torch.Tensor | None) -> torch.Tensor:
    """Pool the output of a stage's last unit.

    - ``"mean"``: over height and width, or over all tokens with the mean token (the study's).
    - ``"max"``: the largest of each channel, over the same.
    - ``"gem"``: the generalized mean (mean of x³)^(1/3) with x floored at 1e-6 (Radenović, Tolias and
      Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018).
    - ``"tokens"``: the mean without the mean token; over a grid, the same as ``"mean"``.
    - ``"grid"``: the means of a 2×2 grid, channel by channel, without the mean token.
    - ``"cls"``: the class token of a transformer. All others leave the tokens in front of its patches out.

    Parameters
    ----------
    x : tensor, shape (n, channels, side, side)
        Or (n, side, side, channels) where channels come last, (n, tokens, channels) of a transformer, or
        (n, dim) where the stage has no reduction.
    stage : Stage
    pooling : str
    positions : tensor of float32, shape (1 + side², channels), or None
        The attention pool's positional embedding, for the ``"tokens"`` reduction.

    Returns
    -------
    tensor of float32, shape (n, pooled_dim(stage, pooling))
    """
    if stage.reduction == "none":
        return x.float()
    if stage.reduction == "patches":
        return _pool_patches(x, stage, pooling)
    if stage.reduction == "channels_last":
        x = x.permute(0, 3, 1, 2)
    on_tokens = positions is not None and stage.has_tokens
    if pooling == "mean":
        mean = _mean(x)
        # The mean token is the tokens' mean, so it moves the mean of all only by its own position.
        return mean + positions.mean(dim=0) if on_tokens and positions is not None else mean
    grid = x.float()
    if on_tokens and positions is not None:
        side = x.shape[-1]
        first = _mean(x) + positions[0]
        grid = grid + positions[1:].T.reshape(1, -1, side, side)
    if pooling == "grid":
        return functional.adaptive_avg_pool2d(grid, GRID).flatten(1)
    flat = grid.flatten(2)
    if pooling == "tokens":
        return flat.mean(dim=2)
    if on_tokens:
        flat = torch.cat([first[:, :, None], flat], dim=2)
    return _extreme(flat, pooling)


def _pool_patches(x: torch.Tensor, stage: Stage, pooling: str) -> torch.Tensor:
    if pooling == "cls":
        return x[:, 0].float()
    patches = x[:, stage.prefix :].float()
    if pooling in ("mean", "tokens"):
        return patches.mean(dim=1)
    flat = patches.transpose(1, 2)
    if pooling == "grid":
        side = round(flat.shape[2] ** 0.5)
        return functional.adaptive_avg_pool2d(flat.unflatten(2, (side, side)), GRID).flatten(1)
    return _extreme(flat, pooling)


def _extreme(flat: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return the largest values of (n, channels, places), or their generalized means."""
    if pooling == "max":
        return flat.amax(dim=2)
    return flat.clamp(min=GEM_FLOOR).pow(GEM_POWER).mean(dim=2).pow(1 / GEM_POWER)


def _mean(x: torch.Tensor) -> torch.Tensor:
    """Return the mean over height and width in float32.

    Converted first, with channels last as they lie in memory: a third of the time that ``x.mean(dim=(2, 3))``
    takes, which is 7 % of all that comes before it at ``layer1``.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).float().mean(dim=1)
