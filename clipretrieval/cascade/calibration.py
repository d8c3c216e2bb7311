"""How sure an exit has to be, set on images whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_number
from clipretrieval._util.warning import warn_caller
from clipretrieval.cascade.exit_policy import THRESHOLDS, ExitEvidence, ExitPolicy
from clipretrieval.cascade.risk_control import last_accepted, least_sample
from clipretrieval.errors import InvalidInputError, StoreCorruptedError

__all__ = [
    *("Calibration", "CascadeState"),
    *("calibrate_policy", "check_enough", "check_promise", "read_state"),
]

MOSTLY = 0.8
"""Of a budget: where less is used, a warning says so."""
LEAST_LOSS = 1e-5
"""To promise less takes more than 300,000 images."""


@dataclass(frozen=True)
class Calibration:
    """What `CascadeClassifier.calibrate` has set, and what it saw.

    Attributes
    ----------
    n : int
        Images that it was calibrated on.
    max_loss, confidence : float or None
        What was promised; None with a budget.
    budget : float or None
        In 10⁹ multiply-adds an image.
    threshold : float or None
        See `ExitPolicy`; None: nothing leaves before the last exit.
    loss : float
        The accuracy of always going to the last exit less that of the cascade, on these images.
    multiply_adds, last_multiply_adds : float
        Mean arithmetic of the cascade on them, and of the last exit, in 10⁹ an image.
    shares : tuple of float
        The share of the images that left at each exit.
    n_stored, n_classes : int
        What the last exit's store held then; 0 where it was not asked.
    """

    n: int
    max_loss: float | None
    confidence: float | None
    budget: float | None
    threshold: float | None
    loss: float
    multiply_adds: float
    last_multiply_adds: float
    shares: tuple[float, ...]
    n_stored: int = 0
    n_classes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return {**vars(self), "shares": list(self.shares)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` returned.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is anything else.
        """
        numbers = {
            name: None if values[name] is None and name in _OPTIONAL else float(values[name])
            for name in (*_OPTIONAL, "loss", "multiply_adds", "last_multiply_adds")
        }
        shares = tuple(map(float, values["shares"]))
        counts = {name: int(values[name]) for name in ("n", "n_stored", "n_classes")}
        told: Any = {**counts, **numbers, "shares": shares}
        if set(values) != set(told):
            raise ValueError("it has fields that are not known")
        if not np.isfinite([*shares, *(number or 0.0 for number in numbers.values())]).all():
            raise ValueError("a number is not finite")
        if told["n"] < 1 or told["last_multiply_adds"] <= 0:
            raise ValueError("a count or an amount is not positive")
        promised = {told["max_loss"] is None, told["confidence"] is None}
        if promised != {told["budget"] is not None}:
            raise ValueError("there must be a promise or a budget, one of the two")
        return cls(**told)


@dataclass(frozen=True)
class CascadeState:
    """What a saved cascade's folder says: when images leave, what was calibrated, what exits cost.

    Attributes
    ----------
    policy : ExitPolicy
    calibration : Calibration or None
    multiply_adds : tuple of float
        In 10⁹, up to each exit.
    calibrated_on : frozenset of str
        Content ids of the images.
    """

    policy: ExitPolicy
    calibration: Calibration | None
    multiply_adds: tuple[float, ...]
    calibrated_on: frozenset[str]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], n_exits: int) -> CascadeState:
        """Read what a cascade has saved.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is anything else.
        """
        policy, told = ExitPolicy.from_dict(values["policy"]), values["calibration"]
        calibration = None if told is None else Calibration.from_dict(told)
        costs = tuple(map(float, values["multiply_adds"]))
        counts = {policy.n_exits, len(costs), n_exits if told is None else len(told["shares"])}
        if counts != {n_exits}:
            raise ValueError("there are not as many exits as stages")
        if not (np.isfinite(costs).all() and min(costs) >= 0 and costs[-1] > 0):
            raise ValueError("the exits' multiply-adds are no amounts")
        if not all(isinstance(each, str) for each in values["calibrated_on"]):
            raise ValueError("the images that were calibrated on have no ids")
        return cls(policy, calibration, costs, frozenset(values["calibrated_on"]))


def read_state(path: str | Path, state: Mapping[str, Any], n_exits: int) -> CascadeState:
    """Read what a saved cascade's folder says.

    Raises
    ------
    StoreCorruptedError
        If it is damaged.
    """
    try:
        return CascadeState.from_dict(state, n_exits)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StoreCorruptedError(
            f"{path} is damaged: its cascade cannot be read ({error}). Restore the folder from a copy, "
            "or fit again"
        ) from error


_OPTIONAL = ("max_loss", "confidence", "budget", "threshold")


def check_promise(
    max_loss: Any, confidence: Any, budget: Any, *, least: float = 0.0, first: str = ""
) -> tuple[float, float, float | None]:
    """Return what a calibration is to keep to; `least` is what it takes to reach the first exit.

    Raises
    ------
    InvalidInputError
        If one of them is no number in its range, or the budget does not reach the first exit.
    """
    max_loss = check_number(max_loss, "max_loss", least=LEAST_LOSS, most=0.999)
    confidence = check_number(confidence, "confidence", above=0, most=0.999999)
    budget = None if budget is None else check_number(budget, "budget", above=0)
    if budget is not None and budget < least:
        raise InvalidInputError(
            f"budget={budget:g} is less than the {least:.3g} · 10⁹ multiply-adds that it takes to "
            f"reach the first exit, {first!r}; pass at least that"
        )
    return max_loss, confidence, budget


def check_enough(n: int, max_loss: float, confidence: float) -> None:
    """Refuse to promise anything by too few images.

    Raises
    ------
    InvalidInputError
    """
    needed = least_sample(max_loss, confidence)
    if needed is not None and n < needed:
        raise InvalidInputError(
            f"{n} images are too few to promise a loss of at most {max_loss:g} with a confidence of "
            f"{confidence:g}: it takes at least {needed}, and more where some are lost. Pass more images, a "
            "greater max_loss, or a budget"
        )


def calibrate_policy(
    policy: ExitPolicy,
    evidence: ExitEvidence,
    multiply_adds: Sequence[float],
    *,
    max_loss: float,
    confidence: float,
    budget: float | None,
) -> tuple[ExitPolicy, Calibration]:
    """Find the highest threshold that keeps the promise, or the lowest that keeps the budget.

    Parameters
    ----------
    policy : ExitPolicy
        Learned on other images.
    evidence : ExitEvidence
        In an order that does not depend on the answers.
    multiply_adds : sequence of float
        In 10⁹, up to each exit.
    max_loss, confidence, budget
        As for `CascadeClassifier.calibrate`.

    Raises
    ------
    InvalidInputError
        If the images are too few for the promise.
    """
    n, costs = len(evidence), np.array(multiply_adds)
    if budget is None:
        check_enough(n, max_loss, confidence)
        tried = (losses(evidence, policy.at(threshold)) for threshold in THRESHOLDS.tolist())
        number = last_accepted(tried, max_loss, confidence)
        threshold = None if number is None else float(THRESHOLDS[number])
    else:
        threshold = _lowest_threshold(evidence, policy, costs, budget)
    found = policy.at(threshold)
    places = found.exits(evidence)
    spent, lost = float(costs[places].mean()), float(losses(evidence, found).mean())
    if budget is not None and spent < MOSTLY * min(budget, float(costs[-1])):
        warn_caller(
            f"only {spent:.3g} of the budget of {budget:.3g} · 10⁹ multiply-adds are used, and {lost:.2%} of "
            "accuracy is lost: so many images are equally sure at an exit that they can only leave together. "
            "Votes of more neighbors, another head, or certainty='combined' tell them apart"
        )
    return found, Calibration(
        n=n,
        max_loss=max_loss if budget is None else None,
        confidence=confidence if budget is None else None,
        budget=budget,
        threshold=threshold,
        loss=lost,
        multiply_adds=spent,
        last_multiply_adds=float(costs[-1]),
        shares=tuple((np.bincount(places, minlength=len(costs)) / n).tolist()),
    )


def losses(evidence: ExitEvidence, policy: ExitPolicy) -> npt.NDArray[np.float64]:
    """Return what a policy loses on each image beside the last exit, in {-1, 0, 1}, shape (n,)."""
    places = policy.exits(evidence)
    given = evidence.correct[places, np.arange(len(evidence))]
    found: npt.NDArray[np.float64] = evidence.correct[-1].astype(np.float64) - given
    return found


def _lowest_threshold(
    evidence: ExitEvidence, policy: ExitPolicy, costs: npt.NDArray[np.float64], budget: float
) -> float | None:
    """Return the lowest threshold at which an image costs no more than a budget on average."""
    if costs[-1] <= budget:
        return None
    risks = [
        policy.risk(place, evidence.margins[place], evidence.agrees[place], evidence.distances[place])
        for place in range(evidence.n_exits - 1)
    ]
    tried = np.unique(np.concatenate(risks))
    low, high = 0, len(tried) - 1  # at the highest, all leave at the first exit
    while low < high:
        middle = (low + high) // 2
        if costs[policy.at(float(tried[middle])).exits(evidence)].mean() <= budget:
            high = middle
        else:
            low = middle + 1
    return float(tried[low])
