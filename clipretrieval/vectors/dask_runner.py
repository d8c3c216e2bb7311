"""Shards encoded by a Dask cluster, or by Dask on this machine."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from clipretrieval._util.dependencies import require
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import StoreUnavailableError
from clipretrieval.vectors.local_runner import pickled, unpickled
from clipretrieval.vectors.part_report import PartReport
from clipretrieval.vectors.shard_job import ShardJob

__all__ = ["run_on_dask"]

_DEADLINE_S = 10.0
"""For a scheduler to be reached."""
_ADDRESS = "DASK_SCHEDULER_ADDRESS"
_USER = re.compile(r"(\w+://)?.*@", re.DOTALL)
_alone = threading.Lock()
"""A worker's threads encode one after the other: each shard takes all of its cores."""


def run_on_dask(encoder: Encoder, jobs: Sequence[ShardJob], workers: int) -> Iterator[PartReport]:
    """Encode shards as tasks of Dask's, of which `workers` are given at a time.

    What a worker that dies has not done, another does.

    Raises
    ------
    StoreUnavailableError
        If the scheduler cannot be reached, or a shard's workers keep dying.
    MissingDependencyError
        If Dask is not installed.
    """
    dask = require("distributed", "encoding with runner='dask'", 'run: pip install "clipretrieval[dask]"')
    content = pickled(encoder)
    with _client(dask, workers) as client:
        if not client.scheduler_info()["workers"]:
            warn_caller("the Dask cluster has no workers: this waits until one comes; check that they run")
        # A task and no scattered data, which would be lost with the worker that holds them.
        kept = client.submit(bytes, content, pure=False)
        waiting, running = list(reversed(jobs)), dask.as_completed()
        futures = set[Any]()
        try:
            while waiting or futures:
                while waiting and len(futures) < workers:
                    future = client.submit(_run, kept, waiting.pop(), pure=False)
                    futures.add(future)
                    running.add(future)
                done = next(running)
                futures.discard(done)
                yield done.result()
        except (dask.KilledWorker, CancelledError, OSError) as error:
            raise StoreUnavailableError(
                f"Dask's workers keep dying, or its scheduler is gone ({_first_line(error)}): is there too "
                "little memory? What is done is kept; call it again with fewer workers"
            ) from error
        finally:
            client.cancel([*futures, kept])


def _run(content: bytes, job: ShardJob) -> PartReport:
    with _alone:
        return job.run(unpickled(content))


def _client(dask: Any, workers: int) -> AbstractContextManager[Any]:
    """Return the client that is there, one of the scheduler that is named, or one of a cluster made here."""
    found = _current(dask)
    if found is not None and found.status == "running":
        return nullcontext(found)
    address = os.environ.get(_ADDRESS)
    try:
        if address:
            client: AbstractContextManager[Any] = dask.Client(address, timeout=_DEADLINE_S)
        else:
            options = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
            client = dask.Client(n_workers=workers, **options)
    except (OSError, RuntimeError, ValueError, MemoryError) as error:  # of what is no scheduler, too
        failed = _current(dask)
        if failed is not None and failed is not found:  # or it would stay the program's
            with suppress(Exception):  # it has failed already
                failed.close(timeout=1)
        shown = _USER.sub(r"\1***@", address or "this machine")
        known = isinstance(error, ValueError)  # which may quote a part of the address, and so a password
        text = "this is no address" if known else _first_line(error).replace(address or "\0", shown)
        raise StoreUnavailableError(
            f"Dask at {shown} cannot be reached: {text}; start it, or set {_ADDRESS} to where it is"
        ) from None
    return client


def _current(dask: Any) -> Any:
    try:
        return dask.Client.current()
    except ValueError:  # there is none
        return None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
