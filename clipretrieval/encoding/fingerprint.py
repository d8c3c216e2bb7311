"""What decides an encoder's vectors, in a form that can be kept and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipretrieval.encoding.stages import Stage

__all__ = ["differences", "hash_tensors", "tensors_used"]


def hash_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash named tensors by value, whatever device or precision holds them.

    Parameters
    ----------
    tensors : iterable of (name, tensor)
        The order does not matter.

    Returns
    -------
    str
        ``"sha256:"`` and 64 hexadecimal digits over the names, the shapes and the float32 values.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        values = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
        digest.update(f"{name}:{tuple(values.shape)};".encode())
        digest.update(values.numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def tensors_used(
    visual: nn.Module, stage: Stage, stages: Mapping[str, Stage]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors that run up to a stage; counters of training steps do not.

    Parameters
    ----------
    visual : open_clip.modified_resnet.ModifiedResNet
    stage : Stage
    stages : mapping of str to Stage
        The model's whole table.
    """
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


def differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name every entry in which two fingerprints differ.

    Parameters
    ----------
    stored, given : mapping of str to JSON values
        Nested mappings are compared entry by entry.

    Returns
    -------
    list of str
        One ``"stage: stored 'mid', given 'late'"`` a difference; empty for equal fingerprints.
    """
    found: list[str] = []
    for key in sorted({*stored, *given}):
        old, new = stored.get(key, _ABSENT), given.get(key, _ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif type(old) is not type(new) or old != new:
            found.append(f"{prefix}{key}: stored {_short(old)}, given {_short(new)}")
    return found


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
