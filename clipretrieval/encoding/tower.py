"""The weights behind an encoder: read once, at the first use, and turned into an engine."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import nn

from clipretrieval.encoding.engine import Engine
from clipretrieval.encoding.fingerprint import hash_tensors, tensors_used
from clipretrieval.encoding.plan import InferencePlan
from clipretrieval.encoding.stages import Stage
from clipretrieval.encoding.weights import ModelSource, load_visual

__all__ = ["Tower"]


class Tower:
    """An image encoder that is loaded and converted when it is needed; safe under threads.

    Parameters
    ----------
    source : ModelSource
    seed : int
    plan : InferencePlan
    pooling : str
    mean, std : sequence of float, length 3
    image_size : int
    """

    def __init__(
        self,
        source: ModelSource,
        seed: int,
        plan: InferencePlan,
        *,
        pooling: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
    ) -> None:
        self._source, self._seed, self._plan = source, seed, plan
        self._settings = {"pooling": pooling, "mean": mean, "std": std, "image_size": image_size}
        self._hashes: dict[tuple[int, bool], str] = {}
        self._lock = threading.Lock()
        self.built: Engine | None = None

    def engine(self, depth: int) -> Engine:
        """Return an engine that reaches at least `depth`; a deeper one replaces a shallower one."""
        with self._lock:
            if self.built is None or self.built.depth < depth:
                self.built = Engine(self._visual, depth, self._plan, **self._settings)  # type: ignore[arg-type]
            return self.built

    def weights_hash(self, stage: Stage, stages: Mapping[str, Stage]) -> str:
        """Hash the tensors that run up to a stage; see `clipretrieval.encoding.fingerprint`."""
        key = (stage.depth, stage.reduction == "tokens")
        with self._lock:
            if key not in self._hashes:
                self._hashes[key] = hash_tensors(tensors_used(self._visual, stage, stages))
            return self._hashes[key]

    @cached_property
    def _visual(self) -> nn.Module:
        return load_visual(self._source, self._seed)
