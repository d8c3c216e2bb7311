"""The arguments of a comparison, checked before any work begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

from clipretrieval._util.checks import check_int, check_sequence, check_strings
from clipretrieval.comparison.indexes import StoreMakers, store_makers
from clipretrieval.encoding.staged_encoder import StagedEncoder, stopped_at
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.weighting import Weighting, check_weighting, weighting_name
from clipretrieval.stores.checks import check_k
from clipretrieval.types import Metric
from clipretrieval.zeroshot import ZeroShotClassifier

__all__ = ["Plan", "check_plan"]


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes
    ----------
    stages : tuple of str
    stores : mapping of name to callable
    settings : list of (k, weights)
    metric : Metric
    timed, singles : int
        Test images timed together, and one by one.
    """

    stages: tuple[str, ...]
    stores: StoreMakers
    settings: list[tuple[int, Weighting]]
    metric: Metric
    timed: int
    singles: int

    @property
    def most(self) -> int:
        """The largest k."""
        return max(number for number, _ in self.settings)

    def name(self, stage: str, store: str, number: int, weights: Weighting) -> str:
        """Name a row by its stage and by whatever else differs between rows."""
        parts = [stage, *([store] if len(self.stores) > 1 else [])]
        parts += [f"k={number}"] if len({one for one, _ in self.settings}) > 1 else []
        parts += (
            [weighting_name(weights)] if len({weighting_name(way) for _, way in self.settings}) > 1 else []
        )
        return " ".join(parts)


def check_plan(
    encoder: Any,
    stages: Any,
    stores: Any,
    k: Any,
    weights: Any,
    metric: Any,
    zero_shot: Any,
    timed: Any,
    singles: Any,
) -> Plan:
    """Return the arguments of `compare` in one piece.

    Raises
    ------
    InvalidInputError
        If one of them is none that can be compared.
    """
    if not isinstance(encoder, StagedEncoder):
        raise InvalidInputError(
            f"encoder must be a StagedEncoder, whose stages are compared; got {encoder!r:.100}"
        )
    names = tuple(dict.fromkeys([stages] if isinstance(stages, str) else check_strings(stages, "stages")))
    if not names:
        raise InvalidInputError("stages is empty; pass at least one, such as 'mid'")
    for name in names:
        stopped_at(encoder, name)
    timed = check_int(timed, "timed_images")
    singles = check_int(singles, "single_images", least=0)
    if zero_shot is not None and not isinstance(zero_shot, bool | ZeroShotClassifier):
        raise InvalidInputError(
            f"zero_shot must be a ZeroShotClassifier, True or None; got {zero_shot!r:.100}"
        )
    if isinstance(zero_shot, ZeroShotClassifier) and zero_shot.encoder is not encoder:
        raise InvalidInputError(
            "zero_shot has another encoder than the one that is compared; make it on the same one: "
            "ZeroShotClassifier(encoder, …)"
        )
    kind = Metric.parse(metric)
    single = isinstance(k, str | bytes) or not isinstance(k, Iterable)
    numbers = [check_k(one) for one in ([k] if single else check_sequence(k, "k", "int"))]
    single = isinstance(weights, str | bytes) or callable(weights) or not isinstance(weights, Iterable)
    ways = [weights] if single else check_sequence(weights, "weights", "weightings")
    for way in ways:
        check_weighting(way, kind)
    ways = list(dict.fromkeys(ways))
    settings = list(dict.fromkeys(product(numbers, ways)))
    if not settings:
        raise InvalidInputError("k or weights is empty; pass at least one value of each")
    if len({weighting_name(way) for way in ways}) < len(ways):
        raise InvalidInputError(
            "two weights have one name, and the table could not tell them apart; give each callable its own"
        )
    return Plan(names, store_makers(stores, kind), settings, kind, timed, singles)
