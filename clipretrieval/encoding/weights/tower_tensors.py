"""The tensors of an image encoder by name, checked against its numbers; no module is built for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from clipretrieval._util.forks import ForkLock
from clipretrieval.encoding.stages import Architecture
from clipretrieval.encoding.weights.checkpoints import read_source
from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.encoding.weights.tensor_fit import check_fit

__all__ = ["TowerTensors", "drawn_from", "load_visual", "read_tower", "tensor_shapes"]

TowerTensors = dict[str, torch.Tensor]
"""By the names that they have in open_clip's ``ModifiedResNet``, in float32."""

_VISUAL = "visual."
_DRAWING = ForkLock()
"""Of torch's own generator, which is one for all threads."""


def read_tower(source: ModelSource, seed: int = 0) -> TowerTensors:
    """Read an image encoder's tensors.

    Parameters
    ----------
    seed : int
        Of random weights, where `source` names none.

    Raises
    ------
    WeightsUnavailableError
        If the weights cannot be fetched or read, or do not fit the model.
    """
    state = read_source(source)
    if state is None:
        state = _random_visual(source.architecture, seed).state_dict()
    tower = {name[len(_VISUAL) :]: value for name, value in state.items() if name.startswith(_VISUAL)}
    found = tower or state
    shapes = tensor_shapes(source.architecture)
    check_fit(found, shapes, source)
    # A copy of a module's, which its owner may go on training.
    return {name: found[name].detach().to(torch.float32, copy=True) for name in shapes}


def load_visual(source: ModelSource, seed: int = 0) -> nn.Module:
    """Build open_clip's image encoder of the same tensors, on the CPU, in evaluation mode.

    Parameters and errors are those of `read_tower`.
    """
    visual = _random_visual(source.architecture, seed)
    visual.load_state_dict(read_tower(source, seed))
    return visual.eval().requires_grad_(False)


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Draw random weights from a seed in the block, one thread at a time, and restore torch's generator.

    What other code draws meanwhile, in another thread, is drawn from the seed too.
    """
    with _DRAWING.current, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds every GPU too.
        torch.default_generator.manual_seed(seed)
        yield


def _random_visual(architecture: Architecture, seed: int) -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    with drawn_from(seed):
        visual: nn.Module = ModifiedResNet(
            layers=list(architecture.layers),
            output_dim=architecture.output_dim,
            heads=architecture.heads,
            image_size=architecture.image_size,
            width=architecture.width,
        )
    return visual


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of an image encoder by its name."""
    return dict(_shapes(architecture))


def _shapes(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, half = architecture.width, architecture.width // 2
    for number, (inputs, outputs) in enumerate(((3, half), (half, half), (half, width)), start=1):
        yield from _convolution("", f"conv{number}", f"bn{number}", outputs, inputs, 3)
    inputs = width
    for layer, blocks in enumerate(architecture.layers, start=1):
        inner = width * 2 ** (layer - 1)
        for block in range(blocks):
            name = f"layer{layer}.{block}."
            yield from _convolution(name, "conv1", "bn1", inner, inputs, 1)
            yield from _convolution(name, "conv2", "bn2", inner, inner, 3)
            yield from _convolution(name, "conv3", "bn3", 4 * inner, inner, 1)
            if block == 0:
                yield from _convolution(name, "downsample.0", "downsample.1", 4 * inner, inputs, 1)
            inputs = 4 * inner
    yield "attnpool.positional_embedding", (1 + (architecture.image_size // 32) ** 2, inputs)
    for projection, outputs in zip("kqvc", (inputs,) * 3 + (architecture.output_dim,), strict=True):
        yield f"attnpool.{projection}_proj.weight", (outputs, inputs)
        yield f"attnpool.{projection}_proj.bias", (outputs,)


def _convolution(
    prefix: str, convolution: str, norm: str, outputs: int, inputs: int, side: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}{convolution}.weight", (outputs, inputs, side, side)
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}{norm}.{part}", (outputs,)
