"""Which requests fail, and how."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipretrieval.errors import InvalidInputError

__all__ = ["KINDS", "Faults", "Plan"]

KINDS = ("429", "503", "slow", "cut", "echo", "quota")


@dataclass(frozen=True)
class Plan:
    """What shall go wrong; `PineconeEmulator.fail` documents the fields."""

    rate: float = 0.0
    kinds: Sequence[str] = ()
    seed: int = 0
    script: Sequence[str | None] = ()
    paths: Sequence[str] = ()
    retry_after: float = 0.0
    delay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise InvalidInputError(f"rate must be from 0 to 1; found {self.rate!r}")
        wrong = [kind for kind in (*self.kinds, *self.script) if kind is not None and kind not in KINDS]
        if wrong:
            known = ", ".join(repr(kind) for kind in KINDS)
            raise InvalidInputError(f"unknown kinds of fault {wrong}; choose among {known}")
        if self.rate and not self.kinds:
            raise InvalidInputError("a rate needs at least one kind of fault")


class Faults:
    """Draws a fault for each request; the draws depend on the seed and on the order of the requests alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.plan = Plan()
        self.follow(self.plan)

    def follow(self, plan: Plan) -> None:
        """Forget the plan before and follow this one."""
        with self._lock:
            self.plan = plan
            self._script = list(plan.script)
            self._random = np.random.default_rng(plan.seed)

    def draw(self, path: str) -> tuple[str | None, Plan]:
        """Return the kind of fault that befalls a request, None for none, and the plan that says so."""
        with self._lock:
            plan = self.plan
            if plan.paths and not path.startswith(tuple(plan.paths)):
                return None, plan
            if self._script:
                return self._script.pop(0), plan
            if plan.rate and self._random.random() < plan.rate:
                return plan.kinds[int(self._random.integers(len(plan.kinds)))], plan
            return None, plan
