"""The arguments of a comparison, checked before any work begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

from clipretrieval._util.checks import check_bool, check_int, check_sequence, check_strings
from clipretrieval.comparison.cascade_plan import CascadePlan, check_cascades
from clipretrieval.comparison.indexes import StoreMakers, at_stage, store_makers
from clipretrieval.comparison.linear_probe import PROBE
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.base import Head
from clipretrieval.heads.choice import as_heads, choose_head, head_name
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.statistics import Moments
from clipretrieval.heads.weighting import Weighting, check_weighting, weighting_name
from clipretrieval.stores.checks import check_k
from clipretrieval.types import Metric
from clipretrieval.zeroshot import ZeroShotClassifier

__all__ = ["Plan", "Setting", "check_plan"]

STAGES = ("pixel", "mid", "late", "final")
"""What is compared of a StagedEncoder when no stages are named."""


@dataclass(frozen=True)
class Setting:
    """What answers from an index.

    Attributes
    ----------
    head : str
        What reports call it.
    rule : Head or None
        What learns; None where the neighbors vote.
    k : int
        Neighbors that it reads.
    weights : str, callable or None
        Of votes.
    """

    head: str
    rule: Head | None
    k: int
    weights: Weighting | None


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes
    ----------
    stages : tuple of str
    stores : mapping of name to callable
    settings : list of Setting
    priors : Priors
    metric : Metric
    timed, singles : int or None
        Test images timed together, and one by one; None where the time decides.
    cascades : CascadePlan
    probe : bool
        Whether there is a linear probe of each stage.
    """

    stages: tuple[str, ...]
    stores: StoreMakers
    settings: list[Setting]
    priors: Priors
    metric: Metric
    timed: int | None
    singles: int | None
    cascades: CascadePlan
    probe: bool = False

    @property
    def filled(self) -> tuple[str, ...]:
        """The stages to be stored: those of the cascades too."""
        return tuple(dict.fromkeys([*self.stages, *self.cascades.stages]))

    @property
    def moments(self) -> list[Moments]:
        """The class statistics that the heads read."""
        return [each for setting in self.settings if setting.rule for each in setting.rule.moments]

    def name(self, stage: str, store: str, setting: Setting) -> str:
        """Name a row by its stage and by whatever else differs between rows."""
        alike = [each for each in self.settings if each.head == setting.head]
        weights = {_weights_name(each) for each in alike}
        parts = [stage, *([store] if len(self.stores) > 1 else [])]
        parts += [setting.head] if len({each.head for each in self.settings}) > 1 else []
        parts += [f"k={setting.k}"] if len({each.k for each in alike}) > 1 else []
        parts += [_weights_name(setting)] if len(weights) > 1 else []
        return " ".join(parts)

    def name_of_probe(self, stage: str) -> str:
        """Name the row of a stage's linear probe, which is trained, by that."""
        return f"{stage} {PROBE} (trained)"


def _weights_name(setting: Setting) -> str:
    return "" if setting.weights is None else weighting_name(setting.weights)


def check_plan(
    encoder: Any,
    stages: Any,
    stores: Any,
    heads: Any,
    priors: Any,
    k: Any,
    weights: Any,
    metric: Any,
    zero_shot: Any,
    timed: Any,
    singles: Any,
    cascades: Any,
    share: Any,
    promise: tuple[Any, Any, Any],
    probe: Any = False,
) -> Plan:
    """Return the arguments of `compare` in one piece.

    Raises
    ------
    InvalidInputError
        If one of them is none that can be compared.
    """
    if stages is None:
        stages = STAGES if isinstance(encoder, StagedEncoder) else (getattr(encoder, "stage", ""),)
    names = tuple(dict.fromkeys([stages] if isinstance(stages, str) else check_strings(stages, "stages")))
    if not names:
        raise InvalidInputError("stages is empty; pass at least one, such as 'mid'")
    for name in names:
        at_stage(encoder, name)
    timed = None if timed is None else check_int(timed, "timed_images")
    singles = None if singles is None else check_int(singles, "single_images", least=0)
    if zero_shot is not None and not isinstance(zero_shot, bool | ZeroShotClassifier):
        raise InvalidInputError(
            f"zero_shot must be a ZeroShotClassifier, True or None; got {zero_shot!r:.100}"
        )
    if isinstance(zero_shot, ZeroShotClassifier) and zero_shot.encoder is not encoder:
        raise InvalidInputError(
            "zero_shot has another encoder than the one that is compared; make it on the same one: "
            "ZeroShotClassifier(encoder, …)"
        )
    if zero_shot and not isinstance(encoder, StagedEncoder):
        raise InvalidInputError(
            f"zero_shot is CLIP's own answer, and the encoder is a {type(encoder).__name__}; leave it out, "
            "or pass a StagedEncoder"
        )
    kind = Metric.parse(metric)
    single = isinstance(k, str | bytes) or not isinstance(k, Iterable)
    numbers = [check_k(one) for one in ([k] if single else check_sequence(k, "k", "int"))]
    single = isinstance(weights, str | bytes) or callable(weights) or not isinstance(weights, Iterable)
    ways = [weights] if single else check_sequence(weights, "weights", "weightings")
    for way in ways:
        check_weighting(way, kind)
    ways = list(dict.fromkeys(ways))
    settings = _settings(as_heads(heads, "heads"), list(dict.fromkeys(numbers)), ways)
    if not numbers or not ways or not settings:
        raise InvalidInputError("k, weights or heads is empty; pass at least one value of each")
    if len({weighting_name(way) for way in ways}) < len(ways):
        raise InvalidInputError(
            "two weights have one name, and the table could not tell them apart; give each callable its own"
        )
    return Plan(
        names,
        store_makers(stores, kind),
        settings,
        Priors.parse(priors),
        kind,
        timed,
        singles,
        check_cascades(encoder, cascades, share, *promise),
        check_bool(probe, "probe"),
    )


def _settings(heads: list[Any], numbers: list[int], ways: list[Weighting]) -> list[Setting]:
    """Combine votes with k and weights, and ``"fused"`` with each k above 1; take other heads as they are."""
    settings: list[Setting] = []
    for head in heads:
        name = head_name(head) if choose_head(head, 1) is not None else "votes"
        if name == "votes":
            found = [Setting(name, None, number, way) for number, way in product(numbers, ways)]
        else:
            several = [number for number in numbers if number > 1] if isinstance(head, str) else []
            rules = [rule for number in several or [1] if (rule := choose_head(head, number)) is not None]
            found = [Setting(name, rule, int(rule.k), None) for rule in rules]
        known = [each for each in settings if each.head == name]
        if any(each not in known for each in found) and known:
            raise InvalidInputError(
                f"two heads have the name {name!r}, and the table could not tell them apart; give each a "
                "class of its own"
            )
        settings += [each for place, each in enumerate(found) if each not in known + found[:place]]
    return settings
