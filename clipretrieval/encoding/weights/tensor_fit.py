"""Whether the tensors of a checkpoint are a model's own, and what is said where they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.errors import WeightsUnavailableError

__all__ = ["COUNTER", "check_fit", "tell_faults", "unfit"]

COUNTER = "num_batches_tracked"
"""Of training steps: part of a state dict, of no consequence, and often left out."""
_COUNTED = "running_mean"
"""What a norm has beside its counter."""
_NAMED = 3
"""Tensors that an error names."""


def check_fit(
    found: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]], source: ModelSource
) -> None:
    """Refuse tensors that are not exactly a model's own; counters of training steps may be there or not.

    Parameters
    ----------
    found : mapping of str to tensor
    shapes : mapping of str to shape
        Of every tensor of the model, by its name.
    source : ModelSource
        For the message.

    Raises
    ------
    WeightsUnavailableError
        If any are missing, are too many, or have another shape.
    """
    missing = [name for name in shapes if name not in found and not name.endswith(COUNTER)]
    counters = {name.removesuffix(_COUNTED) + COUNTER for name in shapes if name.endswith(_COUNTED)}
    strange = [name for name in found if name not in shapes and name not in counters]
    other = [
        f"{name} has the shape {tuple(found[name].shape)} in the place of {tuple(shape)}"
        for name, shape in shapes.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    if faults := tell_faults(missing, strange, other):
        raise unfit(source, faults)


def tell_faults(missing: Sequence[str], strange: Sequence[str], other: Sequence[str]) -> str:
    """Say what is wrong with tensors, naming the first of each kind; nothing where nothing is.

    Parameters
    ----------
    missing, strange : sequence of str
        Names of those that are not there, and of those that do not belong there.
    other : sequence of str
        What is said of those that have another shape.
    """
    faults = [
        *([f"it lacks {_listed(missing)}"] if missing else []),
        *([f"it has {_listed(strange)} beside what belongs there"] if strange else []),
        *([_listed(other)] if other else []),
    ]
    return "; ".join(faults)


def unfit(source: ModelSource, why: str) -> WeightsUnavailableError:
    """Return the error that says that weights are none of a model's."""
    return WeightsUnavailableError(
        f"the weights in {source.path or 'the fetched checkpoint'} do not fit {source.tower}: {why}. Pass the"
        " model's name that the weights were made for."
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
