"""open_clip's own modules, built and filled: for random weights, texts, and to be compared with."""

from __future__ import annotations

import torch
from torch import nn

from clipretrieval.encoding.weights.checkpoints import read_source
from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.errors import WeightsUnavailableError

__all__ = ["load_strictly", "load_visual"]


def load_visual(source: ModelSource, seed: int = 0) -> nn.Module:
    """Build open_clip's image encoder, in float32 on the CPU, in evaluation mode.

    Parameters
    ----------
    seed : int
        Of random weights, where `source` names none.

    Raises
    ------
    WeightsUnavailableError
        If the weights cannot be fetched or read, or do not fit the model.
    """
    from open_clip.modified_resnet import ModifiedResNet

    state = read_source(source)
    architecture = source.architecture
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds every GPU too.
        torch.default_generator.manual_seed(seed)
        visual: nn.Module = ModifiedResNet(
            layers=list(architecture.layers),
            output_dim=architecture.output_dim,
            heads=architecture.heads,
            image_size=architecture.image_size,
            width=architecture.width,
        )
    if state is not None:
        tower = {key[len("visual.") :]: value for key, value in state.items() if key.startswith("visual.")}
        load_strictly(visual, tower or state, source)
    return visual.float().eval().requires_grad_(False)


def load_strictly(module: nn.Module, state: dict[str, torch.Tensor], source: ModelSource) -> None:
    """Fill a module with tensors that must be exactly its own.

    Raises
    ------
    WeightsUnavailableError
        If they are not.
    """
    expected = module.state_dict()
    state = {
        key: value.reshape(expected[key].shape)
        if key in expected and value.numel() == expected[key].numel() == 1
        else value
        for key, value in state.items()
    }
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise WeightsUnavailableError(
            f"the weights in {source.path or 'the fetched checkpoint'} do not fit "
            f"{source.architecture.describe()}: {' '.join(lines[1:3])[:300]} "
            "Pass the model's name that the weights were made for."
        ) from error
