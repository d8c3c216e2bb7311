"""What a family of towers tells of itself: how one is taken apart, and which stages that gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipretrieval.encoding.stages import Reduction

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Family", "UnitSpec"]


@dataclass(frozen=True, eq=False)
class UnitSpec:
    """One unit of a tower: a block, or what lies before, between or behind blocks.

    Attributes
    ----------
    stages : tuple of str
        The stages that end with it; empty where none has a name.
    forward : callable
        From the activations before it, or from normalized images (n, 3, side, side), to those behind it.
    modules : sequence of nn.Module
        Whose products may be taken in a shorter type.
    reduction : str
        See `Stage`.
    tensor_prefixes : tuple of str
        How the names of its tensors begin. Tensors of no other unit belong to the first.
    float32_parts : sequence of (nn.Module, str)
        Parts of a module, by their names, that run in float32 always: the patches' embedding, for rounding
        pixels changes the vectors most.
    float32_only : bool
        Whether all of it runs in float32 always, as the two ends do.
    is_block : bool
        Whether it counts as a block, half of which lie before ``mid``.
    """

    stages: tuple[str, ...]
    forward: Callable[[torch.Tensor], torch.Tensor]
    modules: Sequence[nn.Module]
    reduction: Reduction
    tensor_prefixes: tuple[str, ...] = ()
    float32_parts: Sequence[tuple[nn.Module, str]] = ()
    float32_only: bool = False
    is_block: bool = False


@dataclass(frozen=True)
class Family:
    """A kind of tower.

    Attributes
    ----------
    title : str
        As the documentation calls it.
    stages : mapping of str to str
        What lies behind each stage but ``pixel``; ``N`` and ``M`` stand for numbers from 0.
    matches : callable
        Tells whether a module is a tower of this family.
    units : callable
        Takes one apart, whose images have a side that it is also given.
    built_for : callable
        Returns the side of the images that one was built for; None where it takes any.
    resize : callable
        Sets one in place to images of another side; raises ValueError where it cannot.
    size_multiple : callable
        Returns what sides must be multiples of.
    prefix_tokens : callable
        Returns the number of tokens in front of the patches, and whether the first is a class token.
    describe : callable
        Returns what tells apart towers whose tensors may be the same.
    examples : tuple of str
        Models that the documentation lists.
    """

    title: str
    stages: Mapping[str, str]
    matches: Callable[[Any], bool]
    units: Callable[[Any, int], list[UnitSpec]]
    built_for: Callable[[Any], int | None]
    resize: Callable[[Any, int], None]
    size_multiple: Callable[[Any], int]
    prefix_tokens: Callable[[Any], tuple[int, bool]]
    describe: Callable[[Any], str]
    examples: tuple[str, ...]
