"""The graph of an exported encoder, run by one of the runtimes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from clipretrieval._util.files import read_file, remedy
from clipretrieval.encoding.onnx.onnx_file import INPUT, OnnxFile, OnnxFileError, check_seal, output_name
from clipretrieval.encoding.onnx.planning import RUNTIMES, plan_runtime
from clipretrieval.encoding.onnx.runtimes.runtime_session import RuntimeSession
from clipretrieval.encoding.stage_output import StagePart
from clipretrieval.errors import WeightsUnavailableError
from clipretrieval.types import FloatArray

__all__ = ["OnnxGraph"]

_LARGEST = 2**31 - 1
"""Bytes that protobuf allows a message."""
_LONGEST_REASON = 300
_LONGEST_PASS_S = 60
"""For which a fork waits."""


class OnnxGraph:
    """A file's graph; safe under threads and forks.

    Parameters
    ----------
    path : Path
    runtime : str
        One of `RUNTIMES`.
    precision : str
        One of `PRECISIONS`.
    batch_size, cores : int
        The most images that go together, and how many cores compute them.

    Raises
    ------
    MissingDependencyError
        If the runtime is not installed.
    InvalidInputError
        If the file cannot be run in this precision on this CPU.
    WeightsUnavailableError
        If the file cannot be read, was changed, or cannot be run.

    Attributes
    ----------
    file : OnnxFile
        What the file says of itself.
    plan : InferencePlan
        How it runs.
    """

    def __init__(self, path: Path, runtime: str, precision: str, batch_size: int, cores: int) -> None:
        self._path, self._runtime = path, RUNTIMES[runtime]
        self._version = self._runtime.version()
        self._digest: str | None = None
        self._session: RuntimeSession | None = None
        self._passes = 0
        self._changed = threading.Condition(threading.Lock())
        with _forking:
            _graphs.add(self)
        with self._explained("load"):
            content = self._read()
            self.file = OnnxFile.from_content(content)
        self.plan = plan_runtime(path, self.file, runtime, precision, batch_size, cores)
        with self._explained("load"), self._changed:
            self._session = self._load(content)

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
        with self._explained("run"), self._passing():
            # Not by a name of its own: what a thread still holds at a fork is never let go in the child.
            found = self._session.run([output_name(part) for part in wanted], squares)  # type: ignore[union-attr]
        return dict(zip(wanted, found, strict=True))

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """Have the session, loaded anew after a fork, and no fork meanwhile."""
        with self._changed:
            if self._session is None:
                self._session = self._load(self._read())
            self._passes += 1
        try:
            yield
        finally:
            with self._changed:
                self._passes -= 1
                self._changed.notify_all()

    def _load(self, content: bytes) -> RuntimeSession:
        session = self._runtime(content, self.plan)
        parts, side = self.file.output.parts, self.file.image_size
        outputs = {output_name(part): part.dim for part in parts if part.stage.depth > 0}
        if session.outputs != outputs or session.inputs != {INPUT: ("uint8", side, side, 3)}:
            raise OnnxFileError("its graph is not the one that it describes")
        return session

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
            raise WeightsUnavailableError(
                f"the encoder {str(self._path)!r} cannot be read once more, which a forked process, and its "
                "parent after it, has to: another file has taken its place. Open it anew: OnnxEncoder(path)"
            )
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
        except Exception as error:  # what the runtimes raise has no class of its own
            raise WeightsUnavailableError(
                f"{self._runtime.title} {self._version} cannot {doing} the encoder {str(self._path)!r}: "
                f"{_reason(error)}. If it is too old for the file, upgrade it (pip install -U "
                f"{self._runtime.package}); if memory is short, encode fewer images at a time (a batch_size "
                "below 8)"
            ) from error

    def _before_fork(self) -> None:
        """Let go of the session: a copy without its threads would hang, even where it is only deleted."""
        self._changed.acquire()
        self._changed.wait_for(lambda: self._passes == 0, _LONGEST_PASS_S)
        self._session = None

    def _after_fork(self, in_child: bool) -> None:
        if in_child:
            self._changed = threading.Condition(threading.Lock())
        else:
            self._changed.release()


def _reason(error: Exception) -> str:
    """Return what a runtime says in one line, without the places in its own source files."""
    lines = (str(error) or repr(error)).splitlines()
    said = " ".join(line for line in lines if not line.startswith(("Exception from ", "Check '")))
    return (said or lines[0])[:_LONGEST_REASON].strip()


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
