"""How long the first answer takes, and a single image's.

    python benchmarks/latency.py start --index FOLDER … --image FILE [--rounds 7]
    python benchmarks/latency.py single [--model RN50] [--out single.json]

``start`` starts processes and counts their processor seconds: torch alone, the encoder's import, the
command's help, and ``classify`` of one image by each saved classifier.

``single`` asks a classifier about one image at a time: one asker or eight, on an idle machine and beside two
processes that compute without end. The library, which chooses the threads itself, has its turns beside the
same encoder bound to all of torch's threads and to one, and beside open_clip with FAISS as one would write it
by hand. A round gives each side the same images; the sides alternate. What is measured is written after each
row.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _findings import Findings, markdown_table

ASKERS = (1, 8)
NEIGHBORS = 2


def main() -> None:
    """Run what was asked for."""
    arguments = _arguments()
    with Findings(arguments.out, _table) as found:
        (start if arguments.what == "start" else single)(arguments, found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("start", "single"))
    parser.add_argument("--index", type=Path, nargs="*", default=[], help="folders of saved classifiers")
    parser.add_argument("--image", type=Path, help="what they classify")
    parser.add_argument("--model", default="RN50", help="with random weights, or local-dir:PATH")
    parser.add_argument("--stage", default="mid")
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--asked", type=int, default=40, help="images of a round, for each asker")
    parser.add_argument("--out", type=Path, help="write the figures there (JSON), and a table beside it")
    return parser.parse_args()


def start(arguments: argparse.Namespace, found: Findings) -> None:
    """Count the processor seconds of processes, in turns."""
    command = [sys.executable, "-m", "clipretrieval"]
    sides = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import StagedEncoder": [sys.executable, "-c", "from clipretrieval import StagedEncoder"],
        "--help": [*command, "--help"],
        **{
            f"classify by {index.name}": [*command, "classify", index, arguments.image]
            for index in arguments.index
        },
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(list(map(str, side)), check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    torch = statistics.median(taken["import torch"])
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        found.add(
            side=name,
            processor_s=median,
            lowest=min(seconds),
            highest=max(seconds),
            beside_torch=median / torch,
        )


def single(arguments: argparse.Namespace, found: Findings) -> None:
    """Ask about single images, in turns."""
    sides, batch = _sides(arguments)
    rng = np.random.default_rng(1)
    shape = (arguments.asked, arguments.side, arguments.side, 3)
    images = list(rng.integers(0, 256, shape, dtype=np.uint8))
    for busy in (False, True):
        with _neighbors(NEIGHBORS if busy else 0):
            rate = statistics.median(_batch_rate(batch, images) for _ in range(3))
            for askers in ASKERS:
                taken: dict[str, list[float]] = {name: [] for name in sides}
                rates: dict[str, list[float]] = {name: [] for name in sides}
                for side in sides.values():
                    _ask(side, images[:4], askers)
                for _ in range(arguments.rounds):
                    for name, side in sides.items():
                        seconds, latencies = _ask(side, images, askers)
                        taken[name] += latencies
                        rates[name].append(len(latencies) / seconds)
                for name in sides:
                    p50, p95 = np.percentile(taken[name], [50, 95])
                    answered = statistics.median(rates[name])
                    found.add(
                        machine="busy" if busy else "idle",
                        askers=askers,
                        side=name,
                        p50_ms=1000 * float(p50),
                        p95_ms=1000 * float(p95),
                        images_per_s=answered,
                        beside_batches=answered / rate,
                    )


def _sides(arguments: argparse.Namespace) -> tuple[dict[str, Callable[[Any], Any]], Callable[[Any], Any]]:
    """Return what answers one image, by name, and what answers many."""
    import faiss
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image
    from threadpoolctl import ThreadpoolController

    from clipretrieval import RetrievalClassifier, StagedEncoder
    from clipretrieval.encoding.joint_passes import JointPasses
    from clipretrieval.encoding.weights.tower_tensors import load_visual

    pools = ThreadpoolController().select(user_api="openmp")

    class Fixed(JointPasses):
        """Passes that all have the same number of threads, and are never joined."""

        def __init__(self, threads: int) -> None:
            super().__init__(1)
            self._threads = threads

        def run(self, key: Any, given: Any, rows: int, work: Any) -> Any:
            with pools.limit(limits=self._threads):
                return work([given])[0]

    given = {"pretrained": None} if not arguments.model.startswith("local-dir:") else {}
    rng = np.random.default_rng(0)
    stored = list(rng.integers(0, 256, (64, arguments.side, arguments.side, 3), dtype=np.uint8))

    def classifier(threads: int | None) -> RetrievalClassifier:
        encoder = StagedEncoder(arguments.model, stage=arguments.stage, device="cpu", **given)
        if threads is not None:
            encoder._tower._joint = Fixed(threads)
        return RetrievalClassifier(encoder).fit(stored, list(range(64)))

    ours = classifier(None)
    source = ours.encoder._tower.source
    visual = load_visual(source)
    transform = image_transform_v2(PreprocessCfg(**source.preprocess_cfg), is_train=False)

    def by_hand(image: Any) -> Any:
        with torch.inference_mode():
            return visual(transform(Image.fromarray(image))[None]).numpy()

    vectors = np.concatenate([by_hand(image) for image in stored])
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    one, every = classifier(1), classifier(torch.get_num_threads())
    sides = {
        "the library": lambda image: ours.predict([image]),
        "all threads": lambda image: every.predict([image]),
        "one thread": lambda image: one.predict([image]),
        "open_clip + FAISS (whole encoder)": lambda image: index.search(by_hand(image), 1),
    }
    return sides, ours.predict


def _ask(side: Callable[[Any], Any], images: list[Any], askers: int) -> tuple[float, list[float]]:
    """Return the wall time of some askers, and each answer's."""
    latencies: list[float] = []

    def ask() -> None:
        for image in images:
            started = time.perf_counter()
            side(image)
            latencies.append(time.perf_counter() - started)

    threads = [threading.Thread(target=ask) for _ in range(askers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, latencies


def _batch_rate(answer: Callable[[Any], Any], images: list[Any]) -> float:
    started = time.perf_counter()
    answer(images * 4)
    return 4 * len(images) / (time.perf_counter() - started)


@contextmanager
def _neighbors(count: int) -> Iterator[None]:
    """Have other processes compute meanwhile."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    head = list(rows[0])
    return markdown_table(
        head,
        [
            [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
