"""The graph of an ONNX file, run by ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.dependencies import require
from clipretrieval.encoding.onnx.onnx_file import INPUT, output_name
from clipretrieval.encoding.stage_output import StagePart
from clipretrieval.types import FloatArray

__all__ = ["OnnxGraph"]


class OnnxGraph:
    """A loaded graph; safe under threads, and loaded again by a process that was forked.

    Parameters
    ----------
    read : callable
        Returns the file's content.
    threads : int
        That compute one pass.

    Raises
    ------
    MissingDependencyError
        If ONNX Runtime is not installed.
    """

    def __init__(self, read: Callable[[], bytes], threads: int) -> None:
        self._read, self._threads = read, threads
        self._loaded = (os.getpid(), self._load())

    def run(self, squares: npt.NDArray[np.uint8], parts: Iterable[StagePart]) -> dict[StagePart, FloatArray]:
        """Compute the vectors of some of the file's parts in one pass.

        Parameters
        ----------
        squares : ndarray of uint8, shape (n, size, size, 3)
        parts : iterable of StagePart

        Returns
        -------
        dict of StagePart to ndarray of float32, shape (n, dim of the part)
        """
        wanted = list(parts)
        found = self.session.run([output_name(part) for part in wanted], {INPUT: squares})
        return dict(zip(wanted, found, strict=True))

    @property
    def session(self) -> Any:
        """The ``onnxruntime.InferenceSession`` of this process."""
        process, session = self._loaded
        if process != os.getpid():  # the parent's threads did not come along
            self._loaded = (os.getpid(), session := self._load())
        return session

    def _load(self) -> Any:
        onnxruntime = require("onnxruntime", "OnnxEncoder", "run: pip install onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Threads that have nothing to do would spin on the cores that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(self._read(), options, providers=["CPUExecutionProvider"])
