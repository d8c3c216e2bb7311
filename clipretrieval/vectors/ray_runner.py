"""Shards encoded by a Ray cluster, or by Ray on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from clipretrieval._util.dependencies import require
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import StoreUnavailableError
from clipretrieval.vectors.local_runner import pickled, unpickled
from clipretrieval.vectors.part_report import PartReport
from clipretrieval.vectors.shard_job import ShardJob

__all__ = ["run_on_ray"]

_DEADLINE_S = 10.0
"""For a cluster to be reached."""
_RETRIES = 5
"""Times that a shard is begun again whose worker, or machine, has died."""
_OBJECTS = 2**28
"""Bytes of the shared memory of a Ray that is started here; only the encoder lies there."""


def run_on_ray(encoder: Encoder, jobs: Sequence[ShardJob], workers: int) -> Iterator[PartReport]:
    """Encode shards as tasks of Ray's, of which `workers` run at a time.

    What a worker, or a machine, that dies has not done, another does.

    Raises
    ------
    StoreUnavailableError
        If the cluster cannot be reached, or a shard's workers keep dying.
    MissingDependencyError
        If Ray is not installed.
    """
    ray = require("ray", "encoding with runner='ray'", 'run: pip install "clipretrieval[ray]"')
    content = pickled(encoder)
    with _connected(ray, workers):
        share = _share(ray.nodes(), workers)
        uses_gpu = getattr(getattr(encoder, "device", None), "type", None) == "cuda"
        task = ray.remote(num_cpus=share, num_gpus=int(uses_gpu), max_retries=_RETRIES)(_run)
        kept = ray.put(content)
        waiting, running = list(reversed(jobs)), dict[Any, ShardJob]()
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop()
                    running[task.remote(kept, job)] = job
                for done in ray.wait(list(running))[0]:
                    del running[done]
                    yield _result(ray, done)
        finally:
            for reference in running:
                ray.cancel(reference)


def _share(nodes: Sequence[Mapping[str, Any]], workers: int) -> int:
    """Return the cores of a task: of all cores, but no more than the smallest machine has."""
    cores = [int(each["Resources"].get("CPU", 0)) for each in nodes if each["Alive"]]
    able = [each for each in cores if each >= 1] or [1]
    return max(1, min(sum(able) // workers, *able))


def _run(content: bytes, job: ShardJob) -> PartReport:
    return job.run(unpickled(content))


def _result(ray: Any, reference: Any) -> PartReport:
    try:
        found: PartReport = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        raise StoreUnavailableError(
            f"Ray's workers keep dying ({reason:.300}): is there too little memory? What is done is kept; "
            "call it again with fewer workers"
        ) from error
    return found


@contextmanager
def _connected(ray: Any, workers: int) -> Iterator[None]:
    """Use the connection that is there, connect to the cluster that is named, or start Ray here."""
    if ray.is_initialized():
        yield
        return
    # Otherwise workers have the niceness 15, and starve beside anything else.
    os.environ.setdefault("RAY_worker_niceness", "0")
    address = os.environ.get("RAY_ADDRESS")
    own = {
        "num_cpus": None,
        "include_dashboard": False,
        "object_store_memory": _OBJECTS,
        "_node_ip_address": "127.0.0.1",  # nobody else is to connect to it
    }
    try:
        if address:
            _reach(address)
        ray.init(
            **({"address": address} if address else {**own, "address": "local"}),
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreUnavailableError(
            f"Ray at {address or 'this machine'} cannot be reached: {str(error).splitlines()[0]:.300}; start "
            "it, or set RAY_ADDRESS to where it is. If it asks for a token, as clusters do that Ray 2.59 or "
            "later has started, set RAY_AUTH_MODE=token"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """See whether anybody listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition("@")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_DEADLINE_S).close()
