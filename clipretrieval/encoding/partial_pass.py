"""A pass through the encoder that has stopped, and can go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from clipretrieval.encoding.engine.engine import Engine
from clipretrieval.encoding.pipeline import Chunk, flatten_pixels
from clipretrieval.encoding.stages import Stage, find_stage
from clipretrieval.encoding.workers import torch_alone
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import FloatArray

__all__ = ["PartialPass"]

Rows = Sequence[int] | npt.NDArray[np.intp] | npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PartialPass:
    """Some images' vectors at a stage, with the activations from which deeper stages are computed.

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
    _stages: Mapping[str, Stage]
    _engine: Engine

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    @torch_alone()
    def start(cls, chunk: Chunk, stage: Stage, stages: Mapping[str, Stage], engine: Engine) -> PartialPass:
        """Begin with prepared images; both kinds of squares must be there."""
        squares = torch.from_numpy(chunk.squares["clip"])
        parts = [engine.normalize(part) for part in squares.split(engine.plan.inner_batch)]
        x, vectors = _go_on(engine, parts, 0, stage)
        if stage.depth == 0:
            vectors = flatten_pixels(chunk.squares["pixel"])
        ids = chunk.batch.ids
        return cls(stage.name, vectors, ids, np.arange(len(ids)), x, stage.depth, stages, engine)

    @torch_alone()
    def advance(self, stage: str, rows: Rows | None = None) -> PartialPass:
        """Take some of the images on to a deeper stage; nothing before it is computed again.

        Parameters
        ----------
        stage : str
            Not shallower than this pass's own.
        rows : sequence of int or mask of shape (n,), optional
            Which of this pass's images go on; all of them when left out.

        Returns
        -------
        PartialPass
            With one row for each image that went on, in the order of `rows`.

        Raises
        ------
        InvalidInputError
            If the stage is unknown or lies behind, or a row is out of range, or there are none.
        """
        target = find_stage(self._stages, stage)
        if target.depth < self._depth or target.depth == 0:
            raise InvalidInputError(
                f"the pass has run to {self.stage!r} and cannot go back to {stage!r}; begin a new one"
            )
        chosen = _check_rows(rows, len(self))
        taken = self._activations[torch.from_numpy(chosen)]  # a copy, which the units may overwrite
        parts = list(taken.split(self._engine.plan.inner_batch))
        x, vectors = _go_on(self._engine, parts, self._depth, target)
        ids = [self.ids[row] for row in chosen]
        return PartialPass(
            target.name, vectors, ids, self.rows[chosen], x, target.depth, self._stages, self._engine
        )


@torch.inference_mode()
def _go_on(
    engine: Engine, parts: list[torch.Tensor], start: int, stage: Stage
) -> tuple[torch.Tensor, FloatArray]:
    """Run parts of a batch from depth `start` to a stage; return activations and vectors."""
    outputs = list(_advanced(engine, parts, start, stage))
    vectors = [engine.reduce(x, stage) for x in outputs] if stage.depth > 0 else []
    empty = np.empty((0, 0), dtype=np.float32)
    return torch.cat(outputs), np.concatenate(vectors) if vectors else empty


def _advanced(engine: Engine, parts: list[torch.Tensor], start: int, stage: Stage) -> Iterator[torch.Tensor]:
    for part in parts:
        x = part if part.ndim != 4 else part.contiguous(memory_format=torch.channels_last)
        yield engine.advance(x, start, stage.depth)


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
