"""Run CLIP's image encoder as far as a stage needs, and no further."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from clipretrieval._util.forks import ForkLock
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.engine.reduction import reduce
from clipretrieval.encoding.stage_output import StagePart
from clipretrieval.encoding.workers import torch_alone
from clipretrieval.errors import ClipRetrievalWarning
from clipretrieval.types import FloatArray

__all__ = ["Engine"]

Given = ParamSpec("Given")
Made = TypeVar("Made")
Segment = Callable[[torch.Tensor], torch.Tensor]


def _undisturbed(
    method: Callable[Concatenate[Engine, Given], Made],
) -> Callable[Concatenate[Engine, Given], Made]:
    """Run a method without gradients, and without the caller's autocast, which would change the vectors."""

    @functools.wraps(method)
    def run(self: Engine, /, *args: Given.args, **kwargs: Given.kwargs) -> Made:
        kind = torch.device(self.plan.device).type
        with torch.inference_mode(), torch.autocast(kind, enabled=False), torch_alone():
            return method(self, *args, **kwargs)

    return run


class Engine:
    """The first units of an image encoder, rebuilt to run by a plan; safe under threads.

    Parameters
    ----------
    units : list of nn.Module
        As many as are ever needed, on the plan's device.
    mean, std : sequence of float, length 3
        The model's normalization, on values in [0, 1].
    image_size : int
        Side of the images that will come, in pixels.
    positions : tensor of float32, shape (1 + side², channels), optional
        An attention pool's positional embedding; see `reduce`.
    """

    def __init__(
        self,
        units: list[nn.Module],
        plan: InferencePlan,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        positions: torch.Tensor | None = None,
    ) -> None:
        self.units, self.plan, self.depth = units, plan, len(units)
        self.image_size = image_size
        # (x / 255 − mean) / std as one product and one sum.
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -255 * torch.tensor(mean, dtype=torch.float64) * scale
        # A whole row of pixels at a time: three values alone are too short for vector instructions.
        self.scale = scale.to(plan.device, torch.float32).repeat(image_size)
        self.shift = shift.to(plan.device, torch.float32).repeat(image_size)
        self.positions = None if positions is None else positions.to(plan.device)
        self._compiled: dict[tuple[int, int], Segment] = {}
        self._lock = ForkLock()

    @_undisturbed
    def run(self, squares: npt.NDArray[np.uint8], parts: Iterable[StagePart]) -> dict[StagePart, FloatArray]:
        """Compute the vectors of some stages, each under a pooling, in one pass.

        Parameters
        ----------
        squares : ndarray of uint8, shape (n, size, size, 3)
        parts : iterable of StagePart
            Of any stage but ``pixel``.

        Returns
        -------
        dict of StagePart to ndarray of float32, shape (n, dim of the part)
        """
        return self.run_on(self.normalize(torch.from_numpy(squares)), 0, parts)[1]

    @_undisturbed
    def run_on(
        self, x: torch.Tensor, done: int, parts: Iterable[StagePart]
    ) -> tuple[torch.Tensor, dict[StagePart, FloatArray]]:
        """Go on from activations at depth `done`, which may be overwritten, to the deepest of some parts.

        Returns
        -------
        x : tensor
            The activations there.
        vectors : dict of StagePart to ndarray of float32, shape (n, dim of the part)
        """
        vectors: dict[StagePart, FloatArray] = {}
        for part in sorted(parts, key=lambda part: part.stage.depth):
            x, done = self.advance(x, done, part.stage.depth), part.stage.depth
            vectors[part] = self.reduce(x, part)
        return x, vectors

    @_undisturbed
    def run_each(
        self, squares: Sequence[npt.NDArray[np.uint8]], parts: Iterable[StagePart]
    ) -> list[dict[StagePart, FloatArray]]:
        """Compute what `run` would of each of some arrays, to the bit, in one pass."""
        given = [self.normalize(torch.from_numpy(each)) for each in squares]
        return [vectors for _, vectors in self.run_on_each(given, 0, parts)]

    @_undisturbed
    def run_on_each(
        self, given: Sequence[torch.Tensor], done: int, parts: Iterable[StagePart]
    ) -> list[tuple[torch.Tensor, dict[StagePart, FloatArray]]]:
        """Return what `run_on` would for each of some activations, to the bit, of one pass.

        A convolution computes each image by itself. Products of matrices, in the attention pool alone, round
        by how many rows they have, so that one runs for each.
        """
        parts = list(parts)
        if len(given) == 1:
            return [self.run_on(given[0], done, parts)]
        pooled = [part for part in parts if part.stage.reduction == "none"]
        x, vectors = self.run_on(torch.cat(list(given)), done, [part for part in parts if part not in pooled])
        done = max([done, *(part.stage.depth for part in vectors)])
        if pooled:
            x, done = self.advance(x, done, pooled[0].stage.depth - 1), pooled[0].stage.depth - 1
        found = []
        ends = list(itertools.accumulate(map(len, given)))
        for start, end in itertools.pairwise([0, *ends]):
            y, more = self.run_on(x[start:end], done, pooled)
            found.append((y, {part: each[start:end] for part, each in vectors.items()} | more))
        return found

    @_undisturbed
    def normalize(self, squares: torch.Tensor) -> torch.Tensor:
        """Turn bytes (n, size, size, 3) into the encoder's input (n, 3, size, size), channels last."""
        x = squares.to(self.plan.device, non_blocking=True).float()
        rows = torch.addcmul(self.shift, x.flatten(2), self.scale)
        return rows.to(self.plan.edge_dtype).view(x.shape).permute(0, 3, 1, 2)

    @_undisturbed
    def advance(self, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Run the units from depth `start` to depth `stop`; `x` may be overwritten."""
        if start == stop:
            return x
        if self.plan.compiled:
            return self._compiled_segment(x, start, stop)
        for unit in self.units[start:stop]:
            x = unit(x)
        return x

    @_undisturbed
    def reduce(self, x: torch.Tensor, part: StagePart) -> FloatArray:
        """Make vectors of a stage's activations."""
        vectors: FloatArray = reduce(x, part.stage, part.pooling, self.positions).cpu().numpy()
        return vectors

    def _compiled_segment(self, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        short = self.plan.inner_batch - len(x)
        if short > 0:
            # One shape, one compilation: what is missing is filled up, and dropped behind.
            layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
            x = torch.cat([x, x[:1].expand(short, *x.shape[1:])]).contiguous(memory_format=layout)
        with self._lock.current:
            segment = self._compiled.get((start, stop))
            if segment is None:
                units = self.units[start:stop]
                segment = _compile(units, self.plan, x) if self.plan.compiled else None
                if segment is None:  # none is tried again, and the plan says what runs
                    self.plan = replace(self.plan, compiled=False)
                    segment = nn.Sequential(*units)
                else:
                    self._compiled[start, stop] = segment
        out = segment(x)
        return out[: len(out) - short] if short > 0 else out


def _compile(units: list[nn.Module], plan: InferencePlan, example: torch.Tensor) -> Segment | None:
    """Compile some units with their weights frozen; None, with a warning, where that does not work."""
    plain = nn.Sequential(*units)
    try:
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        settings: dict[str, Any] = {"freezing": True}
        if plan.device == "cpu":
            settings["cpp.threads"] = plan.threads
        # Every encoder's segments share the code of nn.Sequential, and dynamo counts by code.
        # Their names changed in torch 2.7.
        name = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
        limits = dynamo.patch({name: 1024, f"accumulated_{name}": 4096})
        with limits, inductor.patch(settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled: Segment = torch.compile(plain, dynamic=False)
            compiled(example.clone())
        return compiled
    except Exception as error:  # noqa: BLE001  a missing compiler, a bug in inductor: all mean "not here"
        reason = (str(error) or repr(error)).splitlines()[0]
        warnings.warn(
            f"compile=True could not be honoured, so the encoder runs uncompiled: {reason}",
            ClipRetrievalWarning,
            stacklevel=2,  # a worker thread has no line of the caller's
        )
        return None
