"""The weights behind an encoder: read once, at the first use, and turned into an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipretrieval._util.forks import ForkLock
from clipretrieval.encoding.engine.engine import Engine
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.engine.units import tensors_used
from clipretrieval.encoding.fingerprint import hash_tensors
from clipretrieval.encoding.preparation import PIXEL_GEOMETRY, Preparation
from clipretrieval.encoding.stage_output import SCALING, StageOutput
from clipretrieval.encoding.stages import Stage
from clipretrieval.encoding.text_encoder import TextEncoder
from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.encoding.weights.tower_tensors import TowerTensors, read_tower
from clipretrieval.encoding.workers import torch_alone

__all__ = ["Tower"]


class Tower:
    """An image encoder that is loaded and converted when it is needed; safe under threads.

    Parameters
    ----------
    preparation : Preparation
        Whose ``mean`` and ``std`` normalize the images.

    Attributes
    ----------
    text : TextEncoder
        The text tower that belongs to the image encoder.
    """

    def __init__(
        self,
        source: ModelSource,
        seed: int,
        plan: InferencePlan,
        preparation: Preparation,
        image_size: int,
    ) -> None:
        self.source, self._seed, self._plan = source, seed, plan
        self._preparation, self._image_size = preparation, image_size
        self._hashes: dict[tuple[int, bool], str] = {}
        self._lock = ForkLock()
        self._loaded: TowerTensors | None = None
        self.built: Engine | None = None
        self.text = TextEncoder(source, seed, plan.device)

    def engine(self, depth: int) -> Engine:
        """Return an engine that reaches at least `depth`; a deeper one replaces a shallower one."""
        with self._lock.current, torch_alone():
            if self.built is None or self.built.depth < depth:
                self.built = Engine(
                    self._tensors,
                    self.source.architecture,
                    depth,
                    self.plan,
                    mean=self._preparation.cfg["mean"],
                    std=self._preparation.cfg["std"],
                    image_size=self._image_size,
                )
            return self.built

    def weights_hash(self, stage: Stage, stages: Mapping[str, Stage]) -> str:
        """Hash the tensors that run up to a stage; see `clipretrieval.encoding.fingerprint`."""
        key = (stage.depth, stage.has_tokens)
        with self._lock.current, torch_alone():
            if key not in self._hashes:
                self._hashes[key] = hash_tensors(tensors_used(self._tensors, stage, stages))
            return self._hashes[key]

    def describe(self, output: StageOutput, stages: Mapping[str, Stage]) -> dict[str, Any]:
        """Return what decides an output's vectors, as JSON values; see `StagedEncoder.fingerprint_of`."""
        identity: dict[str, Any] = {"encoder": "StagedEncoder", "stage": output.name, "dim": output.dim}
        if output.depth == 0:
            return {**identity, "preprocessing": dict(PIXEL_GEOMETRY)}
        described = {
            **identity,
            "model": self.source.architecture.describe(output.depth),
            "weights": self.weights_hash(output.deepest, stages),
            "pooling": output.describe_pooling(),
            "image_size": self._image_size,
            "preprocessing": self._preparation.describe(),
        }
        if len(output.parts) == 1:
            return described
        pixel = any(part.stage.depth == 0 for part in output.parts)
        joined = {"scaling": SCALING, **({"pixel_preprocessing": dict(PIXEL_GEOMETRY)} if pixel else {})}
        return {**described, **joined}

    @property
    def plan(self) -> InferencePlan:
        """How the encoder runs: what was asked for, until it turns out that this machine cannot compile."""
        return self._plan if self.built is None else self.built.plan

    @property
    def _tensors(self) -> TowerTensors:
        # Before Python 3.12 a cached_property has a lock, which a process forked meanwhile would wait for.
        if self._loaded is None:
            self._loaded = read_tower(self.source, self._seed)
        return self._loaded
