"""The stages at which an image encoder can stop: data only, no torch.

An encoder is a row of *units*. CLIP's ResNets have the stem, every bottleneck block of ``layer1`` …
``layer4``, and the attention pool; `clipretrieval.encoding.towers` has those of other towers. A stage says
how many units run and what is done with the last one's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from clipretrieval._util.checks import shown
from clipretrieval.errors import InvalidInputError

__all__ = [
    *("LARGEST_SIDE", "PIXEL_SIZE", "STUDY_STAGES", "Architecture", "Stage", "find_stage", "known_stages"),
    "stage_table",
]

PIXEL_SIZE = 32
"""Side of the square image that the ``pixel`` stage flattens, in pixels."""

LARGEST_SIDE = 4096
"""Of the images that an encoder takes, in pixels: beyond it, a single one's activations take gigabytes."""

STUDY_STAGES = ("pixel", "mid", "late", "final")
"""The stopping points of the published study, with the whole encoder last."""

Reduction: TypeAlias = Literal["flatten", "spatial", "channels_last", "tokens", "patches", "none"]


@dataclass(frozen=True)
class Architecture:
    """The numbers that define a CLIP ModifiedResNet image encoder.

    Attributes
    ----------
    layers : tuple of int, length 4
        Bottleneck blocks in ``layer1`` … ``layer4``.
    width : int
        Channels after the stem.
    output_dim : int
        Dimension of CLIP's embedding.
    heads : int
        Heads of the attention pool.
    image_size : int
        Side of the square image that the positional embedding was made for, in pixels.
    """

    layers: tuple[int, int, int, int]
    width: int
    output_dim: int
    heads: int
    image_size: int

    def describe(self, depth: int | None = None) -> str:
        """Return one line that is the same exactly for encoders that are alike.

        Parameters
        ----------
        depth : int, optional
            Describe only the units that run to that depth (see `Stage`).
        """
        units = 2 + sum(self.layers)
        left = (units if depth is None else depth) - 1
        blocks = []
        for count in self.layers:
            if left > 0:
                blocks.append(min(count, left))
                left -= count
        shown = f"layers={'-'.join(map(str, blocks)) or 'stem'}, width={self.width}"
        if depth is None or depth >= units:
            shown += f", heads={self.heads}, output_dim={self.output_dim}"
        return f"ModifiedResNet({shown})"

    def multiply_adds(self, depth: int, image_size: int | None = None) -> float:
        """Count the arithmetic of the units that run to a depth, for one image.

        Convolutions and the attention pool's products are counted, as they are defined: a kernel may save
        some. The pool computes one query, the mean token's, and is counted so.

        Parameters
        ----------
        depth : int
            See `Stage`.
        image_size : int, optional
            Side in pixels, a multiple of 32; `image_size` of the architecture when left out.

        Returns
        -------
        float
            In 10⁹ multiply-adds.
        """
        size = self.image_size if image_size is None else image_size
        width, side = self.width, size // 4
        # The stem's first two convolutions halve the side once, and its pool does so again.
        units = [(2 * side) ** 2 * 9 * (3 * width // 2 + (width // 2) ** 2 + width // 2 * width)]
        channels = width
        for number, blocks in enumerate(self.layers):
            inner = width * 2**number
            for block in range(blocks):
                before, stride = side, 2 if block == 0 and number > 0 else 1
                side //= stride
                products = before**2 * inner * (channels + 9 * inner) + side**2 * inner * 4 * inner
                if block == 0:  # the shortcut has a convolution
                    products += side**2 * channels * 4 * inner
                units.append(products)
                channels = 4 * inner
        tokens = 1 + side**2
        units.append(channels * (3 * channels + 2 * tokens * self.heads + self.output_dim))
        return sum(units[:depth]) / 1e9

    def check(self) -> None:
        """Refuse numbers of which no encoder can be built.

        Raises
        ------
        ValueError
        """
        numbers = (*self.layers, self.width, self.output_dim, self.heads, self.image_size)
        if any(not isinstance(number, int) or isinstance(number, bool) or number < 1 for number in numbers):
            raise ValueError(f"sizes must be whole numbers of at least 1; found {self}")
        if self.width % 2 or self.image_size % 32 or self.width * 32 % self.heads:
            raise ValueError(f"width must be even and image_size a multiple of 32; found {self}")


@dataclass(frozen=True)
class Stage:
    """One place to stop.

    Attributes
    ----------
    name : str
    depth : int
        How many units run: 0 is none, 1 the stem alone.
    reduction : {"flatten", "spatial", "channels_last", "tokens", "patches", "none"}
        What turns the last output into a vector: the flattened image; a pooling over height and
        width, of channels that come first or last; a pooling over the attention pool's input tokens, or over
        a transformer's patches; nothing.
    dim : int
        Dimension of the vector under mean pooling.
    stride : int
        Side in pixels of the image's square behind one feature; 0 where there is no grid any more.
    prefix : int
        Tokens in front of the patches: the class token, registers.
    has_class_token : bool
        Whether the first of them is a class token.
    """

    name: str
    depth: int
    reduction: Reduction
    dim: int
    stride: int
    prefix: int = 0
    has_class_token: bool = False

    @property
    def has_grid(self) -> bool:
        """Whether there is something to pool."""
        return self.reduction not in ("flatten", "none")

    @property
    def has_tokens(self) -> bool:
        """Whether what is pooled are the attention pool's tokens."""
        return self.reduction == "tokens"


def stage_table(architecture: Architecture) -> Mapping[str, Stage]:
    """List every stage of a CLIP ResNet, shallowest first.

    ``pixel``, ``stem``, ``layer1.0``, ``layer1.1``, …, ``layer1`` (its last block), …, ``mid`` (the
    same place as ``layer3``), ``layer4``, ``late`` (the tokens that enter the attention pool) and
    ``final`` (CLIP's embedding).

    Parameters
    ----------
    architecture : Architecture

    Returns
    -------
    mapping of str to Stage
    """
    flat = 3 * PIXEL_SIZE * PIXEL_SIZE
    stages = [Stage("pixel", 0, "flatten", flat, 1), Stage("stem", 1, "spatial", architecture.width, 4)]
    depth, dim, stride = 1, architecture.width, 4
    for number, blocks in enumerate(architecture.layers, start=1):
        dim = architecture.width * 4 * 2 ** (number - 1)
        stride = 4 * 2 ** (number - 1)
        for block in range(blocks):
            depth += 1
            stages.append(Stage(f"layer{number}.{block}", depth, "spatial", dim, stride))
        stages.append(Stage(f"layer{number}", depth, "spatial", dim, stride))
        if number == 3:
            stages.append(Stage("mid", depth, "spatial", dim, stride))
    stages.append(Stage("late", depth, "tokens", dim, stride))
    stages.append(Stage("final", depth + 1, "none", architecture.output_dim, 0))
    return {stage.name: stage for stage in stages}


def find_stage(stages: Mapping[str, Stage], name: Any) -> Stage:
    """Return the stage called `name`.

    Raises
    ------
    InvalidInputError
        If there is none; the message lists the known ones.
    """
    if isinstance(name, str) and name in stages:
        return stages[name]
    raise InvalidInputError(f"unknown stage {shown(name)}; choose one of {known_stages(stages)}")


def known_stages(stages: Mapping[str, Stage]) -> str:
    """List the stages for an error: those of the study, then the blocks."""
    blocks = [known for known in stages if known not in STUDY_STAGES]
    return f"{', '.join(STUDY_STAGES)}, or a block: {', '.join(blocks)}"
