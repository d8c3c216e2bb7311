"""A pass through the encoder that has stopped, and can go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from clipretrieval.encoding.engine.engine import Engine
from clipretrieval.encoding.pipeline import Chunk, flatten_pixels
from clipretrieval.encoding.stage_output import POOLED, StageOutput, StagePart, find_pooled
from clipretrieval.encoding.stages import Stage
from clipretrieval.encoding.workers import torch_alone
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import FloatArray

__all__ = ["PartialPass"]

Rows = Sequence[int] | npt.NDArray[np.intp] | npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PartialPass:
    """Some images' vectors at a stage, with what is needed to compute those of deeper stages.

    That is the activations, and the vectors of the stages that were passed, which joined ones may hold.

    Made by `StagedEncoder.begin`. It never changes: `advance` may be called again, and for other rows.

    Attributes
    ----------
    stage : str
        Where it stopped.
    vectors : ndarray of float32, shape (n, dim of the stage)
    ids : list of str, length n
        Content ids.
    rows : ndarray of int, shape (n,)
        Which of the images that the pass began with these are.
    """

    stage: str
    vectors: FloatArray
    ids: list[str]
    rows: npt.NDArray[np.intp]
    _activations: torch.Tensor
    _depth: int
    _parts: Mapping[StagePart, FloatArray]
    _pooling: str
    _stages: Mapping[str, Stage]
    _engine: Engine

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    @torch_alone()
    def start(
        cls, chunk: Chunk, output: StageOutput, stages: Mapping[str, Stage], pooling: str, engine: Engine
    ) -> PartialPass:
        """Begin with prepared images; both kinds of squares must be there.

        `pooling` is that of the stages that name none.
        """
        squares = torch.from_numpy(chunk.squares["clip"]).split(engine.plan.inner_batch)
        flat = [part for part in output.parts if part.stage.depth == 0]
        deep = [part for part in output.parts if part.stage.depth > 0]
        x, vectors = _go_on(engine, [engine.normalize(part) for part in squares], 0, deep)
        vectors.update((part, flatten_pixels(chunk.squares["pixel"])) for part in flat)
        ids = chunk.batch.ids
        return cls(
            stage=output.name,
            vectors=output.join(vectors),
            ids=ids,
            rows=np.arange(len(ids)),
            _activations=x,
            _depth=output.depth,
            _parts=vectors,
            _pooling=pooling,
            _stages=stages,
            _engine=engine,
        )

    @torch_alone()
    def advance(self, stage: str, rows: Rows | None = None) -> PartialPass:
        """Take some of the images on to a deeper stage; nothing before it is computed again.

        Parameters
        ----------
        stage : str
            Not shallower than this pass's own, perhaps with a pooling of its own (``"late:max"``). Of joined
            ones, those that are shallower must have been stopped at on the way here.
        rows : sequence of int or mask of shape (n,), optional
            Which of this pass's images go on; all of them when left out.

        Returns
        -------
        PartialPass
            With one row for each image that went on, in the order of `rows`.

        Raises
        ------
        InvalidInputError
            If the stage, or one that is joined, is unknown or lies behind, or a row is out of range, or there
            are none.
        """
        target = find_pooled(self._stages, stage, self._pooling)
        if isinstance(stage, str) and POOLED in stage:
            target = replace(target, name=stage)
        if target.depth < self._depth or target.depth == 0:
            raise InvalidInputError(
                f"the pass has run to {self.stage!r} and cannot go back to {stage!r}; begin a new one"
            )
        new = [part for part in target.parts if part not in self._parts]
        passed = [part.stage.name for part in new if part.stage.depth < self._depth]
        if passed:
            raise InvalidInputError(
                f"{stage!r} needs the vectors of {passed[0]!r}, and the pass has run to {self.stage!r} "
                f"without them; begin a new one, at {passed[0]!r} or before it"
            )
        chosen = _check_rows(rows, len(self))
        taken = self._activations[torch.from_numpy(chosen)]  # a copy, which the units may overwrite
        batches = list(taken.split(self._engine.plan.inner_batch))
        x, found = _go_on(self._engine, batches, self._depth, new)
        vectors = {part: known[chosen] for part, known in self._parts.items()} | found
        return replace(
            self,
            stage=target.name,
            vectors=target.join(vectors),
            ids=[self.ids[row] for row in chosen],
            rows=self.rows[chosen],
            _activations=x,
            _depth=target.depth,
            _parts=vectors,
        )


@torch.inference_mode()
def _go_on(
    engine: Engine, batches: list[torch.Tensor], start: int, parts: Iterable[StagePart]
) -> tuple[torch.Tensor, dict[StagePart, FloatArray]]:
    """Run batches from depth `start` to the deepest of some parts; return activations and vectors."""
    done = [
        engine.run_on(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, start, parts)
        for x in batches
    ]
    vectors = {part: np.concatenate([found[part] for _, found in done]) for part in done[0][1]}
    return torch.cat([x for x, _ in done]), vectors


def _check_rows(rows: Rows | None, n: int) -> npt.NDArray[np.intp]:
    if rows is None:
        return np.arange(n)
    try:
        given = np.asarray(rows)
    except ValueError:  # rows of different lengths
        given = np.empty(0)
    if given.dtype == np.bool_ and given.shape == (n,):
        given = np.flatnonzero(given)
    if given.ndim != 1 or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        raise InvalidInputError(f"rows must be a list of at least one row number, or a mask of shape ({n},)")
    if given.min() < 0 or given.max() >= n:
        raise InvalidInputError(f"rows must lie in [0, {n}); found {given.min()} to {given.max()}")
    return given.astype(np.intp)
