"""How sure an exit has to be, set on images whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_number
from clipretrieval.cascade.exit_policy import THRESHOLDS, ExitEvidence, ExitPolicy
from clipretrieval.cascade.risk_control import last_accepted, least_sample
from clipretrieval.errors import InvalidInputError, StoreCorruptedError

__all__ = ["Calibration", "calibrate_policy", "check_promise", "read_state"]

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
        told: Any = {"n": int(values["n"]), **numbers, "shares": shares}
        if set(values) != set(told):
            raise ValueError("it has fields that are not known")
        if not np.isfinite([*shares, *(number or 0.0 for number in numbers.values())]).all():
            raise ValueError("a number is not finite")
        return cls(**told)


def read_state(
    path: str | Path, state: Mapping[str, Any], n_exits: int
) -> tuple[ExitPolicy, Calibration | None, tuple[float, ...]]:
    """Read what a saved cascade's folder says: when images leave, what was calibrated, what exits cost.

    Raises
    ------
    StoreCorruptedError
        If it is damaged.
    """
    try:
        policy, told = ExitPolicy.from_dict(state["policy"]), state["calibration"]
        calibration = None if told is None else Calibration.from_dict(told)
        costs = tuple(map(float, state["multiply_adds"]))
        if {policy.n_exits, len(costs)} != {n_exits}:
            raise ValueError("there are not as many exits as stages")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StoreCorruptedError(
            f"{path} is damaged: its cascade cannot be read ({error}). Restore the folder from a copy, "
            "or fit again"
        ) from error
    return policy, calibration, costs


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
        needed = least_sample(max_loss, confidence)
        if needed is not None and n < needed:
            raise InvalidInputError(
                f"{n} images are too few to promise a loss of at most {max_loss:g} with a confidence of "
                f"{confidence:g}: it takes at least {needed}, and more where some are lost. Pass more "
                "images, a greater max_loss, or a budget"
            )
        tried = (losses(evidence, policy.at(threshold)) for threshold in THRESHOLDS.tolist())
        number = last_accepted(tried, max_loss, confidence)
        threshold = None if number is None else float(THRESHOLDS[number])
    else:
        threshold = _lowest_threshold(evidence, policy, costs, budget)
    found = policy.at(threshold)
    places = found.exits(evidence)
    return found, Calibration(
        n=n,
        max_loss=max_loss if budget is None else None,
        confidence=confidence if budget is None else None,
        budget=budget,
        threshold=threshold,
        loss=float(losses(evidence, found).mean()),
        multiply_adds=float(costs[places].mean()),
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
    for threshold in THRESHOLDS.tolist():
        if costs[policy.at(threshold).exits(evidence)].mean() <= budget:
            return float(threshold)
    return 1.0  # all leave at the first exit
