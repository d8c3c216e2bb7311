"""What comes out of the encoder at a stage: the vectors of one part, or of several that are joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipretrieval._util.checks import check_choice
from clipretrieval.encoding.pooling import POOLINGS, describe_pooling, pooled_dim
from clipretrieval.encoding.stages import Stage, find_stage, known_stages
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import FloatArray

__all__ = [
    *("JOIN", "POOLED", "SCALING", "StageOutput", "StagePart"),
    *("distinct_parts", "find_output", "find_pooled"),
]

JOIN = "+"
"""Between the names of stages, or of poolings, whose vectors are joined."""

POOLED = ":"
"""Between a stage's name and the pooling that it is to have."""

SCALING = "length 1/sqrt(parts)"
"""How parts are scaled before they are joined, as a fingerprint says it."""


@dataclass(frozen=True)
class StagePart:
    """One stage under one pooling.

    Attributes
    ----------
    stage : Stage
    pooling : str
        Of no consequence where the stage has no grid.
    """

    stage: Stage
    pooling: str

    @property
    def dim(self) -> int:
        """Dimension of the part's vectors."""
        return pooled_dim(self.stage, self.pooling)


@dataclass(frozen=True)
class StageOutput:
    """The vectors that an encoder returns under one name.

    Attributes
    ----------
    name : str
        The stages' names, with ``+`` between them.
    pooling : str
        The poolings' names in the same form.
    parts : tuple of StagePart
        At least one, in the order of their values in a vector.
    """

    name: str
    pooling: str
    parts: tuple[StagePart, ...]

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return sum(part.dim for part in self.parts)

    @property
    def deepest(self) -> Stage:
        """The stage for which most of the encoder runs."""
        return max((part.stage for part in self.parts), key=lambda each: (each.depth, each.has_tokens))

    @property
    def depth(self) -> int:
        """How many units run."""
        return self.deepest.depth

    def describe_pooling(self) -> str | None:
        """Return what identifies the poolings in a fingerprint; None where no stage has any."""
        ways = [describe_pooling(part.stage, part.pooling) for part in self.parts]
        return JOIN.join(dict.fromkeys(way for way in ways if way is not None)) or None

    def join(self, vectors: Mapping[StagePart, FloatArray]) -> FloatArray:
        """Make vectors of those of the parts.

        A single part is returned as it is. Of several, each is divided by its Euclidean length, image by
        image, and by √(number of parts), so that all have the same share in distances and a joined vector has
        length one. Lengths differ many times over between stages and poolings, and between images, and no
        factor that is known without images makes up for it. A part of zeros stays zeros.

        Parameters
        ----------
        vectors : mapping of StagePart to ndarray of float32, shape (n, dim of the part)
            With every part of this output.

        Returns
        -------
        ndarray of float32, shape (n, dim)
        """
        if len(self.parts) == 1:
            return vectors[self.parts[0]]
        joined = np.zeros((len(vectors[self.parts[0]]), self.dim), dtype=np.float32)
        share, start = np.float32(len(self.parts) ** 0.5), 0
        for part in self.parts:
            rows, place = vectors[part], slice(start, start + part.dim)
            with np.errstate(over="ignore", invalid="ignore"):  # of values that are not finite
                lengths = np.linalg.norm(rows, axis=1, keepdims=True)
                far = ~np.isfinite(lengths[:, 0])
                if far.any():  # their squares are beyond float32
                    lengths[far] = np.linalg.norm(rows[far].astype(np.float64), axis=1, keepdims=True)
                lengths *= share
                np.divide(rows, lengths, out=joined[:, place], where=lengths != 0)
            start += part.dim
        return joined


def find_output(
    stages: Mapping[str, Stage], stage: str | Sequence[str], pooling: str | Sequence[str]
) -> StageOutput:
    """Return the output of one or several stages under one or several poolings.

    The parts are each stage's, in the order given, under each pooling. A stage without a grid has one part,
    and ``"mean"`` and ``"tokens"`` are one where there are no tokens.

    Parameters
    ----------
    stages : mapping of str to Stage
        See `clipretrieval.encoding.stages.stage_table`.
    stage, pooling : str, or tuple or list of str
        Several in one string have ``+`` between them.

    Raises
    ------
    InvalidInputError
        If a stage or pooling is unknown, named twice, also by another name of the same place, or there is
        none, or a stage cannot be pooled so; the message lists the known ones.
    """
    found = [find_stage(stages, name) for name in _names(stage)]
    if not found:
        raise InvalidInputError(f"stage is empty; choose at least one of {known_stages(stages)}")
    places = [(each.name, (each.depth, each.reduction)) for each in found]
    _refuse_twice("stage", places, known_stages(stages))
    poolings = [check_choice(name, "pooling", POOLINGS) for name in _names(pooling)]
    if not poolings:
        raise InvalidInputError(f"pooling is empty; choose at least one of {', '.join(POOLINGS)}")
    _refuse_twice("pooling", [(name, name) for name in poolings], ", ".join(POOLINGS))
    return StageOutput(
        JOIN.join(each.name for each in found),
        JOIN.join(poolings),
        tuple(part for each in found for part in _parts_at(each, poolings)),
    )


def find_pooled(stages: Mapping[str, Stage], name: str, pooling: str | Sequence[str]) -> StageOutput:
    """Return what a name stands for that may end with a pooling of its own: ``"layer2:grid"``."""
    if not isinstance(name, str) or POOLED not in name:
        return find_output(stages, name, pooling)
    stage, _, own = name.partition(POOLED)
    return find_output(stages, stage, own)


def distinct_parts(outputs: Iterable[StageOutput]) -> list[StagePart]:
    """List what has to be computed for some outputs, each part once."""
    return list(dict.fromkeys(part for output in outputs for part in output.parts))


def _names(given: Any) -> list[Any]:
    """Return names one by one; what is neither a name nor several is refused by whoever looks it up."""
    if isinstance(given, str):
        return list(given.split(JOIN))
    return list(given) if isinstance(given, tuple | list) else [given]


def _refuse_twice(what: str, named: list[tuple[str, Any]], known: str) -> None:
    """Refuse two names of one thing, given as (name, thing)."""
    first: dict[Any, str] = {}
    for name, thing in named:
        if thing in first:
            same = "twice" if first[thing] == name else f"and {first[thing]!r}, which are the same"
            raise InvalidInputError(f"{what} holds {name!r} {same}; name each once, of {known}")
        first[thing] = name


def _parts_at(stage: Stage, poolings: list[str]) -> Iterable[StagePart]:
    """Return a stage's parts, without poolings that give the same vectors there as an earlier one."""
    if not stage.has_grid:
        return [StagePart(stage, poolings[0])]
    kinds: dict[str, str] = {}
    for pooling in poolings:
        kinds.setdefault("mean" if pooling == "tokens" and not stage.has_tokens else pooling, pooling)
    parts = [StagePart(stage, pooling) for pooling in kinds.values()]
    for part in parts:
        pooled_dim(part.stage, part.pooling)  # refuses what the stage cannot do
    return parts
