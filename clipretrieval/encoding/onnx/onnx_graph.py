"""The graph of an exported encoder, run by ONNX Runtime."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from clipretrieval._util.dependencies import require
from clipretrieval._util.files import read_file, remedy
from clipretrieval.encoding.onnx.onnx_file import INPUT, KEY, OnnxFile, OnnxFileError, check_seal, output_name
from clipretrieval.encoding.stage_output import StagePart
from clipretrieval.errors import WeightsUnavailableError
from clipretrieval.types import FloatArray

__all__ = ["OnnxGraph"]

_LARGEST = 2**31 - 1
"""Bytes that protobuf allows a message."""


class OnnxGraph:
    """A file's graph; safe under threads and forks.

    Parameters
    ----------
    path : Path
    threads : int
        That compute one pass.

    Raises
    ------
    MissingDependencyError
        If ONNX Runtime is not installed.
    WeightsUnavailableError
        If the file cannot be read, was changed, or cannot be run.

    Attributes
    ----------
    file : OnnxFile
        What the file says of itself.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._path, self._threads = path, threads
        self._runtime = require("onnxruntime", "OnnxEncoder", "run: pip install onnxruntime")
        self._digest: str | None = None
        self._session: Any = None
        self._lock = threading.Lock()
        with _forking:
            _graphs.add(self)
        with self._explained("load"):
            self.file = _described(self._loaded())

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
        with self._explained("run"):
            found = self._loaded().run([output_name(part) for part in wanted], {INPUT: squares})
        return dict(zip(wanted, found, strict=True))

    def _loaded(self) -> Any:
        """Return the ``onnxruntime.InferenceSession``, loaded anew after a fork."""
        with self._lock:
            if self._session is None:
                self._session = self._load()
            return self._session

    def _load(self) -> Any:
        content = self._read()
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Threads that have nothing to do would spin on the cores that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return self._runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def _read(self) -> bytes:
        try:
            content = read_file(self._path, _LARGEST)
        except OSError as error:
            advice = remedy(error, "pass the path of a file that StagedEncoder.export wrote")
            raise WeightsUnavailableError(
                f"the encoder {str(self._path)!r} cannot be read: {error.strerror or error}; {advice}"
            ) from error
        digest = check_seal(content)
        if self._digest not in (None, digest):
            raise OnnxFileError("another file has taken its place since it was opened")
        self._digest = digest
        return content

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Say of which file, and what to do, where something fails that is not explained yet."""
        try:
            yield
        except (OnnxFileError, WeightsUnavailableError) as error:
            if isinstance(error, WeightsUnavailableError):
                raise
            raise WeightsUnavailableError(
                f"the encoder {str(self._path)!r} cannot be used: {error}. Export it again with this release "
                "(StagedEncoder.export, or clipretrieval export), or copy it again"
            ) from error
        except Exception as error:  # what ONNX Runtime raises has no class of its own
            reason = (str(error) or repr(error)).splitlines()[0]
            raise WeightsUnavailableError(
                f"ONNX Runtime {self._runtime.__version__} cannot {doing} the encoder {str(self._path)!r}: "
                f"{reason}. If it is too old for the file, upgrade it (pip install -U onnxruntime); if "
                "memory is short, encode fewer images at a time (a batch_size below 8)"
            ) from error

    def _before_fork(self) -> None:
        """Let go of the session: a copy without its threads would hang, even where it is only deleted."""
        self._lock.acquire()
        self._session = None

    def _after_fork(self, in_child: bool) -> None:
        if in_child:
            self._lock = threading.Lock()
        else:
            self._lock.release()


def _described(session: Any) -> OnnxFile:
    """Return what a loaded file says of itself, once its graph is found to be in accord."""
    file = OnnxFile.from_json(session.get_modelmeta().custom_metadata_map.get(KEY, ""))
    wanted = {output_name(part): part.dim for part in file.output.parts if part.stage.depth > 0}
    found = {each.name: each.shape[-1] for each in session.get_outputs()}
    inputs = [(each.name, each.type, list(each.shape[1:])) for each in session.get_inputs()]
    side = file.image_size
    if found != wanted or inputs != [(INPUT, "tensor(uint8)", [side, side, 3])]:
        raise OnnxFileError("its graph is not the one that it describes")
    return file


_graphs: WeakSet[OnnxGraph] = WeakSet()
_forking = threading.Lock()
"""Held while the set changes, and while this process forks."""
_waiting: list[OnnxGraph] = []
"""Those whose locks are taken meanwhile."""


def _before_fork() -> None:
    _forking.acquire()
    for each in list(_graphs):
        each._before_fork()
        _waiting.append(each)


def _after_fork(in_child: bool) -> None:
    global _forking
    while _waiting:
        _waiting.pop()._after_fork(in_child)
    if in_child:
        _forking = threading.Lock()
    else:
        _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(False),
        after_in_child=lambda: _after_fork(True),
    )
