"""What a runtime has to do for an exported encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.types import FloatArray

__all__ = ["RuntimeSession"]


class RuntimeSession(Protocol):
    """A graph that a runtime has loaded, for any number of threads at once.

    Parameters
    ----------
    content : bytes
        An ONNX model.
    plan : InferencePlan
        How it runs.

    Raises
    ------
    MissingDependencyError
        If the runtime is not installed.
    Exception
        Any, if the graph is not one that it can run.

    Attributes
    ----------
    title : str
        The runtime's name for people.
    package : str
        What it is installed by.
    inputs : mapping of str to sequence
        Of each input its type and its shape but for the number of images, such as ``("uint8", 224, 224, 3)``.
    outputs : mapping of str to int
        Of each output its last dimension.
    """

    title: ClassVar[str]
    package: ClassVar[str]
    inputs: Mapping[str, Sequence[str | int]]
    outputs: Mapping[str, int]

    def __init__(self, content: bytes, plan: InferencePlan) -> None: ...

    @classmethod
    def version(cls) -> str:
        """Return the version that is installed; `MissingDependencyError` if there is none."""
        ...

    @classmethod
    def plan(cls, precision: str, fitting: int, cores: int) -> InferencePlan:
        """Decide how it runs.

        Parameters
        ----------
        precision : str
            One of `precisions`.
        fitting : int
            Images whose activations fit a core's cache.
        cores : int
        """
        ...

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        """Return the precisions that it has on this CPU, the fastest first, ``"int8"`` last."""
        ...

    def run(self, names: Sequence[str], squares: npt.NDArray[np.uint8]) -> list[FloatArray]:
        """Compute some outputs of n squares, shape (n, size, size, 3).

        Returns
        -------
        list of ndarray of float32, shape (n, dim of the output)
        """
        ...
