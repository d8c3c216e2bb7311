"""How long each part of the work took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["MEASURABLE", "Timing"]

MEASURABLE = 0.005
"""Seconds below which a part counts as having taken no time: reports show hundredths."""


@dataclass
class Timing:
    """Seconds and images of each part: ``"decode"``, ``"encode"``, ``"store"``, ``"search"``.

    Attributes
    ----------
    seconds : dict of str to float
    images : dict of str to int
    """

    seconds: dict[str, float] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def add(self, part: str, seconds: float, images: int) -> None:
        """Count some more seconds and images towards a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.images[part] = self.images.get(part, 0) + images

    @contextmanager
    def measure(self, part: str, images: int) -> Iterator[None]:
        """Count the time spent inside the ``with`` block towards a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - started, images)

    def rate(self, part: str) -> float | None:
        """Images a second of a part; None if it took no time that could be measured."""
        seconds = self.seconds.get(part, 0.0)
        return self.images.get(part, 0) / seconds if seconds >= MEASURABLE else None
