"""The weights behind an encoder: read once, at the first use, and turned into an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clipretrieval._util.dependencies import require_torch
from clipretrieval._util.forks import ForkLock
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.fingerprint import hash_tensors
from clipretrieval.encoding.preparation import PIXEL_GEOMETRY, Preparation
from clipretrieval.encoding.stage_output import SCALING, StageOutput
from clipretrieval.encoding.stages import Stage
from clipretrieval.encoding.towers.design import Design
from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.encoding.workers import torch_alone

if TYPE_CHECKING:
    from clipretrieval.encoding.engine.engine import Engine
    from clipretrieval.encoding.joint_passes import JointPasses
    from clipretrieval.encoding.text_encoder import TextEncoder

__all__ = ["Tower"]


class Tower:
    """An image encoder that is loaded and converted when it is needed; safe under threads.

    Torch is loaded no earlier than a plan is asked for.

    Parameters
    ----------
    source : ModelSource
    design : Design
        Of the source's image tower.
    make_plan : callable
        Decides how the encoder runs.
    asked_device : str
        What is told of the device before that.
    preparation : Preparation
        Whose ``mean`` and ``std`` normalize the images.
    """

    def __init__(
        self,
        source: ModelSource,
        design: Design,
        seed: int,
        make_plan: Callable[[], InferencePlan],
        asked_device: str,
        preparation: Preparation,
        image_size: int,
    ) -> None:
        self.source, self.design = source, design
        self._seed, self._make_plan = seed, make_plan
        self._asked_device = asked_device
        self._preparation, self._image_size = preparation, image_size
        self._hashes: dict[tuple[int, bool], str] = {}
        self._lock, self._planning = ForkLock(), ForkLock()
        self._loaded: Any = None
        self._plan: InferencePlan | None = None
        self._text: TextEncoder | None = None
        self._joint: JointPasses | None = None
        self.built: Engine | None = None

    def engine(self, depth: int) -> Engine:
        """Return an engine that reaches at least `depth`; a deeper one replaces a shallower one."""
        plan = self.plan
        with self._lock.current, torch_alone():
            if self.built is None or self.built.depth < depth:
                self.built = self.design.engine(
                    self._weights,
                    depth,
                    plan if self.built is None else self.built.plan,
                    mean=self._preparation.cfg["mean"],
                    std=self._preparation.cfg["std"],
                    image_size=self._image_size,
                )
            return self.built

    def weights_hash(self, stage: Stage) -> str:
        """Hash the tensors that run up to a stage; see `clipretrieval.encoding.fingerprint`."""
        require_torch("the weights' hash")
        key = (stage.depth, stage.has_tokens)
        with self._lock.current, torch_alone():
            if key not in self._hashes:
                self._hashes[key] = hash_tensors(self.design.tensors_used(self._weights, stage))
            return self._hashes[key]

    def weights(self) -> Any:
        """Return all weights of the image encoder; see `Design.read`."""
        require_torch("reading an encoder's weights")
        with self._lock.current, torch_alone():
            return self._weights

    def describe(self, output: StageOutput) -> dict[str, Any]:
        """Return what decides an output's vectors, as JSON values; see `StagedEncoder.fingerprint_of`."""
        identity: dict[str, Any] = {"encoder": "StagedEncoder", "stage": output.name, "dim": output.dim}
        if output.depth == 0:
            return {**identity, "preprocessing": dict(PIXEL_GEOMETRY)}
        weights = self.weights_hash(output.deepest)  # which may tell more of the model
        described = {
            **identity,
            "model": self.design.describe(output.depth),
            "weights": weights,
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
        if self.built is not None:
            return self.built.plan
        if self._plan is None:
            with self._planning.current:
                self._plan = self._plan or self._make_plan()
        return self._plan

    @property
    def device_name(self) -> str:
        """Where it runs, or, before that is found out, what was asked for."""
        return self._asked_device if self._plan is None else self.plan.device

    @property
    def joint(self) -> JointPasses | None:
        """What runs the passes that are asked for one by one; None where no CPU computes them."""
        plan = self.plan
        if self._joint is None and plan.device == "cpu":
            from clipretrieval.encoding.joint_passes import JointPasses

            # In a transformer's products the rest of the batch decides on an image's last bits.
            together = plan.inner_batch if self.design.convolves_as_resnet else 1
            with self._planning.current:
                self._joint = self._joint or JointPasses(together)
        return self._joint

    @property
    def text(self) -> TextEncoder:
        """The text tower that belongs to the image encoder."""
        if self._text is None:
            device = self.plan.device
            from clipretrieval.encoding.text_encoder import TextEncoder

            with self._planning.current:
                self._text = self._text or TextEncoder(self.source, self._seed, device)
        return self._text

    @property
    def _weights(self) -> Any:
        # Before Python 3.12 a cached_property has a lock, which a process forked meanwhile would wait for.
        if self._loaded is None:
            self._loaded = self.design.read(self._seed)
        return self._loaded
