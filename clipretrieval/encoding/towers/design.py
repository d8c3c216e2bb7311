"""What is known of an image encoder before its weights are read, and what is built of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.stages import Stage

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipretrieval.encoding.engine.engine import Engine

__all__ = ["Design"]


class Design(Protocol):
    """An image encoder of some family, at the images' size that it was made for.

    Attributes
    ----------
    stages : mapping of str to Stage
        Shallowest first.
    exits : tuple of str
        Stages from shallow to deep to try when none are named.
    image_size : int
        Side in pixels of the images that the encoder was made for.
    size_multiple : int
        Other sizes must be multiples of it: a patch, or the square behind one feature of the deepest grid.
    convolves_as_resnet : bool
        Whether the kernels for convolutions that an `InferencePlan` names are its own.
    """

    stages: Mapping[str, Stage]
    exits: tuple[str, ...]
    image_size: int
    size_multiple: int
    convolves_as_resnet: bool

    def describe(self, depth: int | None = None) -> str:
        """Return one line that is the same exactly for encoders that are alike up to a depth."""
        ...

    def multiply_adds(self, depth: int, image_size: int | None = None) -> float:
        """Count the arithmetic of the units that run to a depth, for one image, in 10⁹ multiply-adds."""
        ...

    def check_size(self, image_size: int) -> None:
        """Refuse a side of images that the network cannot take.

        Raises
        ------
        InvalidInputError
        """
        ...

    def inner_batch(self, image_size: int) -> int:
        """Return how many images keep their activations in a core's cache; 0 for less than one."""
        ...

    def read(self, seed: int) -> Any:
        """Read the weights, or draw them.

        Raises
        ------
        WeightsUnavailableError
        """
        ...

    def tensors_used(self, weights: Any, stage: Stage) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield the named tensors that run up to a stage."""
        ...

    def engine(
        self,
        weights: Any,
        depth: int,
        plan: InferencePlan,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
    ) -> Engine:
        """Build what runs the first units; `weights` is left as it is."""
        ...

    def library_module(self, seed: int) -> nn.Module:
        """Build the library's own module with the same weights, on the CPU, in evaluation mode."""
        ...
