"""Cascades over the stages that are tried, by what the folds answered at each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from clipretrieval.cascade.calibration import calibrate_policy
from clipretrieval.cascade.exit_policy import ExitEvidence, ExitPolicy
from clipretrieval.cascade.policy_learning import HELD_OUT
from clipretrieval.cascade.risk_control import least_sample
from clipretrieval.comparison.advice import Wishes, choose
from clipretrieval.comparison.candidates import StageVectors
from clipretrieval.evaluation.metrics import wilson_interval

__all__ = ["CascadeTrial", "Said", "TriedCascade"]

Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]

Said: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], Bools]
"""Answers, how far each is ahead of the second, and whether it is right."""

PARTS = 10
"""Parts of the images, each of which is answered by what is learned and calibrated on the others."""

CERTAINTY = "combined"


@dataclass(frozen=True)
class TriedCascade:
    """Exits that have a head.

    Attributes
    ----------
    stages : tuple of int
        Places of its exits among the stages that are tried.
    pooling : str
    setting : int
        Place of its head.
    """

    stages: tuple[int, ...]
    pooling: str
    setting: int


class CascadeTrial:
    """What cascades answer to the images that are chosen on.

    For each pooling, all stages and all but the shallowest, with the head of the most accurate candidate, and
    that of the one that would be advised without cascades.

    Parameters
    ----------
    tried : sequence of StageVectors
    n_settings : int
    n_images : int
    folds : int
        One of them would be calibrated on.
    max_loss, confidence : float

    Attributes
    ----------
    cascades : list of TriedCascade
        In the order of their rows.
    """

    def __init__(
        self,
        tried: Sequence[StageVectors],
        n_settings: int,
        n_images: int,
        folds: int,
        max_loss: float,
        confidence: float,
    ) -> None:
        self._tried, self._n_settings, self._most = tried, n_settings, n_images // folds
        self._max_loss, self._confidence = max_loss, confidence
        self._costs = [each.encoder.multiply_adds() for each in tried]
        self.cascades: list[TriedCascade] = []
        self._evidence: list[ExitEvidence] = []

    def run(
        self, table: Sequence[Mapping[str, Any]], said: Said
    ) -> tuple[list[Bools], list[dict[str, Any]], str]:
        """Return what the cascades answer rightly, a row for each, and why there is none, or an empty text.

        Parameters
        ----------
        table : sequence of mapping
            The rows of the stages and heads.
        said : tuple of ndarray, each of shape (n_rows, n)
            What each said of the images that are chosen on.
        """
        answers, margins, right = said
        costs, n = np.array([row["multiply_adds"] for row in table]), right.shape[1]
        chains = self._chains()
        count = self._split(n - -(-n // PARTS))[1]
        needed = least_sample(self._max_loss, self._confidence) or 1
        if not chains:
            return [], [], ""
        if count < needed:
            return (
                [],
                [],
                f"no cascade was tried: to promise max_loss={self._max_loss:g} with a confidence of "
                f"{self._confidence:g} takes {needed} images to calibrate on, and there are {count}",
            )
        given, rows = list[Bools](), list[dict[str, Any]]()
        for found in [
            TriedCascade(stages, pooling, setting)
            for stages, pooling in chains
            for setting in self._best(stages, costs, right)
        ]:
            own = [stage * self._n_settings + found.setting for stage in found.stages]
            evidence = _evidence(answers[own], margins[own], right[own])
            exits = self._crossed(found, evidence)
            self.cascades.append(found)
            self._evidence.append(evidence)
            given.append(evidence.correct[exits, np.arange(n)])
            depths = [self._costs[stage] for stage in found.stages]
            rows.append(_row([table[place] for place in own], depths, found.pooling, exits, given[-1]))
        return given, rows, ""

    def measure(self, cascade: TriedCascade, answered: Callable[[StageVectors, int], Said]) -> Bools:
        """Tell which images a cascade answers rightly that none was chosen by, nor anything learned on.

        Parameters
        ----------
        cascade : TriedCascade
            One of `cascades`.
        answered : callable
            A stage and the place of a head to what they say of these images.
        """
        policy = self._learned(cascade, self._evidence[self.cascades.index(cascade)])
        found = [answered(self._tried[stage], cascade.setting) for stage in cascade.stages]
        asked = _evidence(*(np.stack(each) for each in zip(*found, strict=True)))
        right: Bools = asked.correct[policy.exits(asked), np.arange(len(asked))]
        return right

    def _chains(self) -> list[tuple[tuple[int, ...], str]]:
        """Return the stages of each cascade, from shallow to deep, with their pooling."""
        found: dict[tuple[int, ...], str] = {}
        for pooling in dict.fromkeys(each.pooling for each in self._tried if each.pooling is not None):
            own = [place for place, each in enumerate(self._tried) if each.pooling in (pooling, None)]
            own.sort(key=self._costs.__getitem__)  # of those that cost the same, the first that was given
            deeper = [after for before, after in pairwise(own) if self._costs[after] > self._costs[before]]
            chain = (own[0], *deeper)
            for stages in (chain, chain[1:]):
                if len(stages) > 1:
                    found.setdefault(stages, pooling)
        return list(found.items())

    def _best(self, stages: Sequence[int], costs: npt.NDArray[np.float64], right: Bools) -> list[int]:
        """Return the places of the heads that are worth a cascade over some stages."""
        own = [stage * self._n_settings + each for stage in stages for each in range(self._n_settings)]
        choice = choose(right[own].T, costs[own], Wishes())
        return list(dict.fromkeys(own[place] % self._n_settings for place in (choice.best, choice.place)))

    def _split(self, n: int) -> tuple[int, int]:
        """Return how many of some images are learned on, and how many calibrated on: no more than a fold."""
        learned = min(HELD_OUT, n // 4)
        return learned, min(self._most, n - learned)

    def _learned(self, cascade: TriedCascade, evidence: ExitEvidence) -> ExitPolicy:
        """Learn a policy on some images, in an order that tells nothing, and calibrate it on others."""
        learned, count = self._split(len(evidence))
        costs = [self._costs[stage] for stage in cascade.stages]
        policy = ExitPolicy.learn(evidence.take(np.arange(learned)), CERTAINTY)
        return calibrate_policy(
            policy,
            evidence.take(np.arange(learned, learned + count)),
            costs,
            max_loss=self._max_loss,
            confidence=self._confidence,
            budget=None,
        )[0]

    def _crossed(self, cascade: TriedCascade, evidence: ExitEvidence) -> Places:
        """Return the exit of each image, by what is learned and calibrated on other images."""
        numbers = np.arange(len(evidence)) % PARTS
        exits = np.zeros(len(evidence), dtype=np.intp)
        for number in range(PARTS):
            policy = self._learned(cascade, evidence.take(np.flatnonzero(numbers != number)))
            own = np.flatnonzero(numbers == number)
            exits[own] = policy.exits(evidence.take(own))
        return exits


def _evidence(answers: npt.NDArray[np.int64], margins: npt.NDArray[np.float64], right: Bools) -> ExitEvidence:
    return ExitEvidence.from_answers(answers, margins, np.full(margins.shape, np.nan), right)


def _row(
    rows: Sequence[Mapping[str, Any]], depths: Sequence[float], pooling: str, exits: Places, right: Bools
) -> dict[str, Any]:
    """Make the row of a cascade from those of its exits: an image has the heads of all that it comes to."""
    heads = np.cumsum([row["head_multiply_adds"] for row in rows])
    count, n = int(right.sum()), len(right)
    shares = np.bincount(exits, minlength=len(rows)) / n
    encode_ms = float(shares @ [row["encode_ms"] for row in rows])
    query_ms = float(shares @ np.cumsum([row["query_ms"] for row in rows]))
    low, high = wilson_interval(count, n)
    return {
        "stage": ", ".join(row["stage"] for row in rows),
        "pooling": pooling,
        "head": rows[0]["head"],
        "dim": rows[-1]["dim"],
        "accuracy": count / n,
        "n": n,
        "low": low,
        "high": high,
        "multiply_adds": float(shares @ (depths + heads)),
        "head_multiply_adds": float(shares @ heads),
        "encode_ms": encode_ms,
        "query_ms": query_ms,
        "total_ms": encode_ms + query_ms,
        "exits": shares.tolist(),
    }
