"""Processes that find the libraries imported: forked from one that has imported them and done nothing else.

Importing torch, open_clip and scikit-learn takes up to five seconds of a core. A test that needs a process of
its own, and not its start, starts it here. What a process gets from its start alone it does not have: the
environment's ``OMP_…`` and ``PYTHON…``, streams of its own making, the handlers of ``atexit``.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

__all__ = ["WarmProcess", "run_warm"]

_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_CONTEXT: ForkServerContext | SpawnContext = (
    multiprocessing.get_context("forkserver") if _FORKS else multiprocessing.get_context("spawn")
)
_IMPORTED = [
    *("clipretrieval.cli.application", "clipretrieval.classifier", "clipretrieval.encoding.staged_encoder"),
    *("clipretrieval.stores.faiss.store", "clipretrieval.stores.chroma.store", "open_clip"),
]
if _FORKS:
    _CONTEXT.set_forkserver_preload(_IMPORTED)


class WarmProcess:
    """What `subprocess.Popen` starts with pipes for both streams, text in UTF-8, and nothing to read.

    Parameters
    ----------
    arguments : sequence of str or path
        Those of the interpreter: ``-m MODULE …``, ``-c PROGRAM …`` or ``FILE …``.
    env : mapping, optional
        The environment; this process's own when left out.
    """

    def __init__(self, arguments: Sequence[object], *, env: Mapping[str, str] | None = None) -> None:
        self.args = [str(argument) for argument in arguments]
        self._folder = Path(tempfile.mkdtemp())
        files = [str(self._folder / name) for name in ("out", "err")]
        environment = dict(os.environ if env is None else env)
        self._process: BaseProcess = _CONTEXT.Process(target=_run, args=(self.args, environment, *files))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, minus the signal's number for one that was killed, or None."""
        return self._process.exitcode

    def kill(self) -> None:
        """End the process, if it has not ended."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return what was written to the standard output and error, once."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        out, err = (self._read(name) for name in ("out", "err"))
        shutil.rmtree(self._folder, ignore_errors=True)
        return out, err

    def _read(self, name: str) -> str:
        """Return what is in a file, if the process has come so far as to make it."""
        path = self._folder / name
        return path.read_text(encoding="utf-8") if path.exists() else ""


def run_warm(
    arguments: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end, as `subprocess.run` does with ``capture_output=True, text=True``."""
    process = WarmProcess(arguments, env=env)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    status = process.poll()
    assert status is not None
    if check and status:
        raise AssertionError(f"{process.args} ended with status {status}\n{out}{err}")
    return subprocess.CompletedProcess(process.args, status, out, err)


def _run(arguments: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """Become the process that was asked for."""
    gc.freeze()
    for place, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, place)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
