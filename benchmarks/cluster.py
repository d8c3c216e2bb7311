"""Encoding by Ray on two nodes beside a plain fit, and what is left when part of the cluster is killed.

    python benchmarks/cluster.py IMAGES --model local-dir:MODEL --stage mid --times 10 --json c.json

Two nodes of one core each run on this machine, on its loopback address. The commands are those of users:
``clipretrieval index`` alone, and ``clipretrieval encode --runner ray`` with ``index --vectors``; they take
turns for ``--rounds``. Then, ``--times`` each, SIGKILL meets a worker, the second node's raylet, or the
driver, which is run again, once a random number of parts is there. After each, every image has to be in the
parts once, and a classifier of them has to find the neighbors that the plain one finds. Needs
``pip install "clipretrieval[ray]" psutil``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from _findings import Findings, markdown_table

from clipretrieval import RetrievalClassifier
from clipretrieval.images import scan_folder

ASKED = 1000
"""Images whose neighbors are compared."""
ROLES = ("worker", "raylet", "driver")
BINARIES = Path(sys.executable).parent


class Node:
    """A node of a Ray cluster: one core, and little memory for objects."""

    def __init__(self, port: int, head: bool) -> None:
        place = (
            ["--head", f"--port={port}", "--include-dashboard=false"]
            if head
            else [f"--address=127.0.0.1:{port}"]
        )
        self._process = psutil.Popen(
            [
                BINARIES / "ray",
                "start",
                "--block",
                *place,
                "--node-ip-address=127.0.0.1",
                "--num-cpus=1",
                "--object-store-memory=134217728",
                "--disable-usage-stats",
            ],
            env={**os.environ, "RAY_worker_niceness": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def processes(self) -> list[psutil.Process]:
        """Return those of the node, without the command that keeps them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.children(recursive=True)
        return []

    def named(self, part: str) -> list[psutil.Process]:
        """Return the processes in whose command line a text occurs."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def stop(self) -> None:
        """Kill what is left of the node."""
        for process in [*self.processes(), self._process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


class Cluster:
    """Two nodes, the second of which may die."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        self.head = Node(self._port, head=True)
        self.second: Node | None = None
        self.mend()

    def mend(self) -> None:
        """Start the second node, if it is not there, and wait for both."""
        import ray

        if self.second is None or not self.second.named("raylet"):
            if self.second is not None:
                self.second.stop()
            self._until(lambda: self.head.named("raylet"))
            self.second = Node(self._port, head=False)
        for _ in range(120):
            with contextlib.suppress(Exception):  # the head may not listen yet
                ray.init(address=self.address, log_to_driver=False, logging_level="FATAL")
                alive = sum(node["Alive"] for node in ray.nodes())
                ray.shutdown()
                if alive == 2:
                    return
            time.sleep(1)
        raise RuntimeError(f"the two nodes at {self.address} did not come up")

    def _until(self, holds: Any) -> None:
        for _ in range(300):
            if holds():
                return
            time.sleep(0.1)

    def memory(self) -> float:
        """Return the megabytes that all of its processes have for themselves."""
        total = 0
        for node in (self.head, self.second):
            for process in node.processes() if node else []:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss - process.memory_info().shared
        return total / 1e6

    def kill(self, role: str, driver: subprocess.Popen[bytes], rng: np.random.Generator) -> None:
        """Send SIGKILL to a worker of either node, to the second node's raylet, or to the driver."""
        if role == "driver":
            driver.kill()
            return
        found = (
            self.second.named("raylet/raylet")[:1]
            if role == "raylet"
            else [process for node in (self.head, self.second) for process in node.named("ray::_run")]
        )
        found[int(rng.integers(len(found)))].kill()

    def stop(self) -> None:
        """Kill both nodes."""
        for node in (self.second, self.head):
            if node is not None:
                node.stop()


@contextlib.contextmanager
def watched(cluster: Cluster) -> Iterator[list[float]]:
    """Keep the most memory that the cluster had meanwhile."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            peak[0] = max(peak[0], cluster.memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


class Bench:
    """The commands that are compared, and what their answers have to be."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._images, self._folder = arguments.images, folder
        self._encoding = ["--model", arguments.model, "--stage", arguments.stage]
        self._shards = arguments.shards

    def start(self, *command: str | Path, address: str = "") -> subprocess.Popen[bytes]:
        """Start one of the library's commands."""
        environment = {**os.environ, **({"RAY_ADDRESS": address} if address else {})}
        return subprocess.Popen(
            [BINARIES / "clipretrieval", *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def run(self, *command: str | Path, address: str = "") -> float:
        """Run one, and return its seconds."""
        start = time.perf_counter()
        process = self.start(*command, address=address)
        errors = process.communicate()[1]
        if process.returncode:
            raise RuntimeError(f"{command[0]} failed: {errors.decode()[-1000:]}")
        return time.perf_counter() - start

    def plain(self) -> float:
        """Fit from the files, in a process of its own."""
        shutil.rmtree(self._folder / "plain", ignore_errors=True)
        return self.run("index", self._images, self._folder / "plain", "--k", "10", *self._encoding)

    def encoding(self, parts: Path) -> list[str | Path]:
        """Return the command that encodes on the cluster."""
        return [
            "encode",
            self._images,
            parts,
            "--runner",
            "ray",
            "--workers",
            "2",
            "--shards",
            str(self._shards),
            *self._encoding,
        ]

    def indexing(self, parts: Path) -> float:
        """Fit from the parts."""
        shutil.rmtree(self._folder / "read", ignore_errors=True)
        return self.run("index", "--vectors", parts, self._folder / "read", "--k", "10", *self._encoding)

    def expect(self) -> None:
        """Keep what the plain classifier holds and answers."""
        plain = RetrievalClassifier.load(self._folder / "plain")
        self._encoder, self._ids = (
            plain.encoder,
            sorted(each for block in plain.store_.scan() for each in block.ids.tolist()),
        )
        paths = scan_folder(self._images).paths
        self._asked = self._encoder.encode(paths[:: max(1, len(paths) // ASKED)])
        self._answers = self._answer(plain)

    def _answer(self, classifier: RetrievalClassifier) -> list[list[str]]:
        near = classifier.store_.search(self._asked, 10)
        return [[*ids, *labels] for ids, labels in zip(near.ids.tolist(), near.labels.tolist(), strict=True)]

    def faults(self, parts: Path) -> list[str]:
        """Return what is not as the plain fit has it."""
        found = []
        tables = [pq.read_table(part, columns=["id"]) for part in parts.glob("*.parquet")]
        ids = [each for table in tables for each in table["id"].to_pylist()]
        if sorted(ids) != self._ids:
            found.append(f"{len(ids):,} images, {len(set(ids)):,} different, of {len(self._ids):,}")
        read = self._answer(RetrievalClassifier.from_vectors("memory", parts, encoder=self._encoder))
        differing = sum(one != other for one, other in zip(read, self._answers, strict=True))
        if differing:
            found.append(f"{differing} of {len(read):,} lists of neighbors and labels differ")
        return found


def render(rows: list[dict[str, Any]]) -> str:
    """Return the tables of what was measured so far."""
    timed = [row for row in rows if row["what"] == "throughput"]
    lines = []
    if timed:
        columns = ("plain", "encode", "encode and index")
        lines.append(
            markdown_table(
                ["images a second", *columns, "ratio to plain"],
                [
                    [
                        f"round {number}",
                        *(f"{row[name]:.0f}" for name in columns),
                        f"{row['encode and index'] / row['plain']:.2f}",
                    ]
                    for number, row in enumerate(timed, start=1)
                ],
            )
        )
        ratios = sorted(row["encode and index"] / row["plain"] for row in timed)
        alone = statistics.median(row["encode"] / row["plain"] for row in timed)
        lines.append(
            f"\nMedian ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), of "
            f"`encode` alone {alone:.2f}; at most {max(row['cluster_mb'] for row in timed):.0f} MB in the "
            "cluster\n"
        )
    killed = [[role, [row for row in rows if row["what"] == role]] for role in ROLES]
    lines.append(
        markdown_table(
            ["killed", "times", "as if nothing had happened"],
            [[role, str(len(of)), str(sum(not row["faults"] for row in of))] for role, of in killed],
        )
    )
    return "\n".join(lines)


def main() -> int:
    """Measure, kill, and return 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder with a sub-folder for each class")
    parser.add_argument("--model", required=True)
    parser.add_argument("--stage", default="mid")
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3, help="of the two sides (default 3)")
    parser.add_argument("--times", type=int, default=10, help="kills of each kind (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    images = len(scan_folder(arguments.images).paths)
    findings = Findings(arguments.json, render, images=images, stage=arguments.stage)
    rng = np.random.default_rng(arguments.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bench, cluster = Bench(arguments, folder), Cluster()
        try:
            for number in range(max(1, arguments.rounds)):
                parts = folder / f"round-{number}"
                with watched(cluster) as peak:
                    encoding = bench.run(*bench.encoding(parts), address=cluster.address)
                both = encoding + bench.indexing(parts)
                findings.add(
                    what="throughput",
                    plain=images / bench.plain(),
                    encode=images / encoding,
                    **{"encode and index": images / both},
                    cluster_mb=peak[0],
                )
            bench.expect()
            for number in range(arguments.times):
                for role in ROLES:
                    parts = folder / "killed"
                    shutil.rmtree(parts, ignore_errors=True)
                    driver = bench.start(*bench.encoding(parts), address=cluster.address)
                    after = int(rng.integers(1, arguments.shards - 2))
                    while driver.poll() is None and len(list(parts.glob("*.parquet"))) < after:
                        time.sleep(0.01)
                    faults = [] if driver.poll() is None else ["it had ended before the kill"]
                    cluster.kill(role, driver, rng)
                    errors = driver.communicate()[1]
                    if role == "driver":
                        bench.run(*bench.encoding(parts), address=cluster.address)
                    elif driver.returncode:
                        faults.append(errors.decode()[-500:])
                    faults += bench.faults(parts)
                    findings.add(what=role, number=number, after=after, faults=faults)
                    cluster.mend()
        finally:
            cluster.stop()
            print(findings)
    return int(any(row.get("faults") for row in findings.rows))


if __name__ == "__main__":
    sys.exit(main())
