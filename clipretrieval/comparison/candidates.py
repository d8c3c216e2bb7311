"""What is tried: each stage under each pooling, and each way to answer from its vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipretrieval._util.checks import check_strings, shown
from clipretrieval._util.text import shortened
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.encoding.pooling import describe_pooling
from clipretrieval.encoding.stage_output import StageOutput, StagePart, find_output
from clipretrieval.encoding.staged_encoder import StagedEncoder, stopped_at
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.choice import as_heads, choose_head, head_name
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.quadratic import Quadratic
from clipretrieval.heads.ridge import Ridge
from clipretrieval.heads.weighting import weighting_name

__all__ = ["DEFAULT_HEADS", "HeadSetting", "StageVectors", "head_settings", "stage_vectors"]

DEFAULT_HEADS = ("votes", "discriminant")
"""Heads that learn from any number of images in little time."""

VOTES: tuple[dict[str, Any], ...] = ({"k": 1}, {"k": 20, "weights": "softmax", "normalize": True})
"""What ``"votes"`` stands for: the study's way, and DINO's."""

LONGEST = 60
"""Letters of a setting's name."""


@dataclass(frozen=True, eq=False)
class StageVectors:
    """The vectors of one stage under one pooling.

    Attributes
    ----------
    encoder : StagedEncoder
        Stopped there.
    output : StageOutput
        With a name that no other one has.
    """

    encoder: StagedEncoder
    output: StageOutput

    @property
    def name(self) -> str:
        """Unique among those that are tried."""
        return self.output.name

    @property
    def pooling(self) -> str | None:
        """None where there is nothing to pool."""
        return self.encoder.pooling if self.output.describe_pooling() else None


@dataclass(frozen=True, eq=False)
class HeadSetting:
    """A way to answer from vectors.

    Attributes
    ----------
    name : str
        Unique among those that are tried.
    params : mapping of str to object
        Arguments of `RetrievalClassifier`.
    """

    name: str
    params: Mapping[str, Any]

    def classifier(self, encoder: StagedEncoder | None = None) -> RetrievalClassifier:
        """Make a classifier that answers so, not fitted."""
        return RetrievalClassifier(encoder, **self.params)

    @property
    def k(self) -> int:
        """Neighbors that are looked up; 0 for none."""
        made = self.classifier()
        head = choose_head(made.head, made.k)
        return int(made.k) if head is None else int(head.k)

    def multiply_adds(self, dim: int, stored: int, classes: int) -> float:
        """Return the arithmetic of one answer, in 10⁹ multiply-adds: an exact search, and the head's own.

        Of a head of one's own, the search alone.

        Parameters
        ----------
        dim : int
            Of the vectors.
        stored, classes : int
            Numbers of stored vectors and of classes.
        """
        made = self.classifier()
        head = choose_head(made.head, made.k)
        found = dim * stored if self.k else 0
        parts = (head.discriminant, head.ridge) if isinstance(head, Fused) else (head,)
        for part in parts:
            if isinstance(part, Discriminant):
                found += dim * classes
            elif isinstance(part, Quadratic):
                found += dim * dim * classes
            elif isinstance(part, Ridge):
                found += (dim + classes) * part.features
        return found / 1e9


def stage_vectors(encoder: Any, stages: Any, poolings: Any) -> list[StageVectors]:
    """List the stages under the poolings, each vector once.

    Raises
    ------
    InvalidInputError
        If there is none, or an argument names no stage or pooling.
    """
    if not isinstance(encoder, StagedEncoder):
        raise InvalidInputError(
            f"encoder must be a StagedEncoder, whose stages are tried; got {shown(encoder)}"
        )
    names = _strings(stages, "stages", "'mid'")
    ways = [encoder.pooling] if poolings is None else _strings(poolings, "poolings", "'mean'")
    found: dict[tuple[Any, ...], StageVectors] = {}
    for name in names:
        for way in ways:
            output = find_output(encoder.stages, name, way)
            unique = replace(output, name=f"{output.name} {output.pooling}")
            found.setdefault(
                tuple(map(_same, output.parts)), StageVectors(stopped_at(encoder, name, way), unique)
            )
    return list(found.values())


def head_settings(heads: Any) -> list[HeadSetting]:
    """List what `heads` stands for, each once.

    Raises
    ------
    InvalidInputError
        If there is none, or one is no head and no arguments of a classifier.
    """
    given = [heads] if isinstance(heads, Mapping) else as_heads(heads, "heads")
    if not given:
        raise InvalidInputError("heads is empty; pass at least one, such as 'discriminant'")
    found: dict[str, HeadSetting] = {}
    for each in given:
        for params in _params(each):
            name = _setting_name(params)
            if name in found and found[name].params != params:
                raise InvalidInputError(
                    f"two of the heads are called {name!r}, and the table could not tell them apart; try "
                    "one after the other"
                )
            found[name] = HeadSetting(name, params)
    return list(found.values())


def _same(part: StagePart) -> tuple[Any, ...]:
    """Return what is equal for parts with the same vectors."""
    stage, pooling = part.stage, describe_pooling(part.stage, part.pooling)
    return stage.depth, stage.reduction, "mean" if pooling == "tokens" and not stage.has_tokens else pooling


def _strings(given: Any, name: str, such: str) -> list[str]:
    found = list(dict.fromkeys([given] if isinstance(given, str) else check_strings(given, name)))
    if not found:
        raise InvalidInputError(f"{name} is empty; pass at least one, such as {such}")
    return found


def _params(given: Any) -> Sequence[dict[str, Any]]:
    """Return the arguments of a classifier that a head's name, a head or a mapping stands for."""
    if isinstance(given, str) and given == "votes":
        return VOTES
    params = dict(given) if isinstance(given, Mapping) else {"head": given}
    known = RetrievalClassifier().get_params(deep=False).keys() - {"encoder", "store", "store_options"}
    strange = [name for name in params if name not in known]
    if strange:
        raise InvalidInputError(
            f"heads has {shown(strange[0])}, which is none of a classifier's arguments that can be tried: "
            f"{', '.join(sorted(known))}"
        )
    RetrievalClassifier(**params)._check_params()
    return (params,)


def _setting_name(params: Mapping[str, Any]) -> str:
    """Return what the table calls a setting: its head, and whatever else was given."""
    made = RetrievalClassifier(**params)
    parts = [head_name(made.head)]
    votes = parts[0] == "votes"
    if votes:
        parts += [f"k={int(made.k)}", *([weighting_name(made.weights)] if made.weights != "uniform" else [])]
    told = {"head", "k", "weights"} if votes else {"head"}
    parts += [
        name if value is True else f"{name}={value}" for name, value in params.items() if name not in told
    ]
    return shortened(" ".join(parts), LONGEST)
