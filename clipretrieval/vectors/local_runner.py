"""Shards encoded by processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any

from clipretrieval.encoding.base import Encoder
from clipretrieval.encoding.workers import usable_cores
from clipretrieval.errors import ClipRetrievalError, InvalidInputError, StoreUnavailableError
from clipretrieval.vectors.part_report import PartReport
from clipretrieval.vectors.shard_job import ShardJob

__all__ = ["pickled", "run_locally", "unpickled"]

_DEATHS = 3
"""Times that processes may die without a shard done in between."""
_encoder: Encoder | None = None
"""Of a process that encodes."""
_failure: Exception | None = None
"""Why such a process has none."""


def run_locally(encoder: Encoder, jobs: Sequence[ShardJob], workers: int) -> Iterator[PartReport]:
    """Encode shards in processes, each with its share of the cores, or of the GPUs; one works here.

    What a process that dies has not done, another does.

    Raises
    ------
    StoreUnavailableError
        If processes keep dying.
    """
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield job.run(encoder)
        return
    content = pickled(encoder)
    gpus = _gpus(encoder)
    due = {job.number: job for job in jobs}
    deaths = 0
    while due:
        for report in _run_in_pool(content, list(due.values()), min(workers, len(due)), gpus):
            del due[report.number]
            deaths = 0
            yield report
        deaths += 1
        if due and deaths >= _DEATHS:
            raise StoreUnavailableError(
                f"{deaths} times in a row, a process that encodes has died without having done a shard, "
                f"{len(due)} of which are left: is there too little memory for {workers} processes, or does "
                "the program lack `if __name__ == '__main__':`, which they need? What is done is kept; call "
                "it again with fewer workers"
            )


def pickled(encoder: Encoder) -> bytes:
    """Return an encoder as bytes that another process can take.

    Raises
    ------
    InvalidInputError
        If it cannot be, as one made of a function within another.
    """
    try:
        return pickle.dumps(encoder)
    except Exception as error:  # whatever an encoder's own parts raise
        if isinstance(error, ClipRetrievalError):
            raise
        raise InvalidInputError(
            f"the encoder cannot be handed to other processes ({error}); make it of functions of a module, "
            "or pass workers=1"
        ) from error


@lru_cache(maxsize=1)
def unpickled(content: bytes) -> Encoder:
    """Return the encoder, which a process that runs several shards makes once."""
    found: Encoder = pickle.loads(content)  # noqa: S301  what this program has sent
    return found


def _run_in_pool(content: bytes, jobs: Sequence[ShardJob], workers: int, gpus: list[str]) -> Iterator[Any]:
    """Yield the reports of what is done before a process dies."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads' locks
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(content, numbers, workers, gpus)
    )
    waiting: set[Future[PartReport]] = set()
    try:
        waiting = {pool.submit(_run, job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                with contextlib.suppress(BrokenProcessPool):
                    yield future.result()
    except BrokenProcessPool:
        return
    finally:
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=not waiting, cancel_futures=True)
        if waiting:  # a failure, or Ctrl-C: what is under way would be waited for
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()


def _begin(content: bytes, numbers: Any, workers: int, gpus: list[str]) -> None:
    """Prepare a process that encodes."""
    global _encoder, _failure
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number = numbers.get()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    elif hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: workers] or cores)
    try:
        _encoder = pickle.loads(content)  # noqa: S301  what this process's own parent has sent
    except Exception as error:  # noqa: BLE001  whatever its parts raise; raised here, it would end the pool
        _failure = error
    if "torch" in sys.modules and not gpus:
        sys.modules["torch"].set_num_threads(max(1, usable_cores()))


def _run(job: ShardJob) -> PartReport:
    if _encoder is None:
        raise InvalidInputError(
            f"a process that encodes cannot load the encoder ({_failure!r:.300}); make it of what "
            "processes can import and open, or pass workers=1"
        )
    return job.run(_encoder)


def _end_with_parent() -> None:
    """End this process when the one that started it has died: nobody would ever ask it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _gpus(encoder: Encoder) -> list[str]:
    """Return the GPUs that processes are to share out; none where the encoder uses none, or a certain one."""
    device = getattr(encoder, "device", None)
    if getattr(device, "type", None) != "cuda" or getattr(device, "index", None) is not None:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [each.strip() for each in named.split(",") if each.strip()]
    torch = sys.modules.get("torch")
    return [] if torch is None else [str(number) for number in range(torch.cuda.device_count())]
