"""The race that the study lost: `mid` and a search, beside whole CLIP, from pictures to answers.

    python benchmarks/study.py --json s.json

RN50 at 224×224 with random weights, 1,000 pictures, 50,000 stored vectors, one neighbour, squared Euclidean
distance. Whole CLIP runs on the same engine to its end and meets ten texts. open_clip, as it comes,
runs by batches of 32 in float32 on tensors prepared beforehand. The sides take turns, 250 pictures each.
The search is exact, as FaissStore's is by default at this size, and by inverted lists beside it.
Figures are medians over the rounds, with the lowest and the highest; ratios are formed round by round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _sides import SIZE, lively_rn50, open_clip_side, prepared_inputs
from PIL import Image

from clipretrieval import StagedEncoder
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.stores import FaissStore
from clipretrieval.types import FloatArray

TURN = 250
CLASSES = 10
OPEN_CLIP_BATCH = 32
TARGETS = {"whole CLIP, same engine": 0.75, "open_clip as it comes": 0.17}
"""The most of each one's time that `mid` and its search may take."""
END = ", end to end"
STUDY_RATIO = 321 / 128
"""`mid` beside CLIP in the study."""


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name), arguments)
    print(render(found))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--images", type=int, default=1000, help="pictures a side and round (default 1000)")
    parser.add_argument("--vectors", type=int, default=50_000, help="stored vectors (default 50000)")
    parser.add_argument(
        "--index",
        nargs="+",
        default=["auto", "IVF512,SQfp16"],
        help='FAISS indexes (default: "auto", which is exact at this size, and IVF512,SQfp16)',
    )
    parser.add_argument("--json", help="also write the figures there")
    return parser.parse_args()


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the sides in turns."""
    visual, weights = lively_rn50(folder)
    pictures = smooth_pictures(arguments.images)
    mid = StagedEncoder("RN50", weights, "mid")
    final = stopped_at(mid, "final")
    final.encode(pictures[:4])  # the engine is built to its end before anything is timed
    spread = Spread(mid.encode(pictures))
    stores = {}
    for index in arguments.index:
        store = FaissStore(index=index)
        store.upsert(*spread.stored(arguments.vectors))
        store.search(spread(mid.encode(pictures[:1])), 1)  # builds the index
        stores[store.index_info.factory] = store
    texts = np.random.default_rng(2).normal(size=(final.dim, CLASSES)).astype(np.float32)

    def one_round() -> dict[str, float]:
        spent: dict[str, float] = {}

        def timed(part: str, work: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            made = work()
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - started
            return made

        for start in range(0, len(pictures), TURN):
            part = pictures[start : start + TURN]
            vectors = timed("mid, encode", lambda part=part: mid.encode(part))
            for index, store in stores.items():
                timed(
                    f"search, {index}", lambda store=store, vectors=vectors: store.search(spread(vectors), 1)
                )
            vectors = timed("whole CLIP, encode", lambda part=part: final.encode(part))
            timed("whole CLIP, texts", lambda vectors=vectors: nearest_text(vectors, texts))
            inputs = prepared_inputs(part)
            side = partial(open_clip_side(visual, inputs, OPEN_CLIP_BATCH), len(inputs))
            timed("open_clip as it comes", side)
        return {name: seconds * 1000 / len(pictures) for name, seconds in spent.items()}

    rounds = []
    for number in range(arguments.rounds + 1):
        print(f"round {number} of {arguments.rounds}", file=sys.stderr)
        measured = one_round()
        if number:  # the first one warms up
            rounds.append(sums(measured))
    names, ends = rounds[0], [name for name in rounds[0] if name.endswith(END)]
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": torch.get_num_threads(),
        },
        "torch": torch.__version__,
        "plan": mid.plan.to_dict(),
        "recall": {index: store.index_info.recall for index, store in stores.items()},
        "rounds": arguments.rounds,
        "images": len(pictures),
        "vectors": arguments.vectors,
        "seconds_per_1000": {name: _spread([one[name] for one in rounds]) for name in names},
        "ratios": {
            end: {peer: _spread([one[end] / one[peer] for one in rounds]) for peer in TARGETS} for end in ends
        },
        "targets": TARGETS,
        "study_ratio": STUDY_RATIO,
    }


def smooth_pictures(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Make pictures of random patches with soft edges: noise alone would give each the same vector."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    return np.stack(
        [
            np.asarray(Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            for small in coarse
        ]
    )


class Spread:
    """Gives vectors of random weights the spread of trained ones: mean 0 and deviation 1 in each dimension.

    Without training every picture has nearly the same vector, at a norm of 21 and a thousandth of that apart.
    A search that is exact would have to tell apart what float32 cannot, which is no one's case.
    """

    def __init__(self, seen: FloatArray) -> None:
        self._mean, self._scale = seen.mean(axis=0), 1 / np.maximum(seen.std(axis=0), 1e-12)
        self._seen = self(seen)

    def __call__(self, vectors: FloatArray) -> FloatArray:
        return (vectors - self._mean) * self._scale

    def stored(self, count: int) -> tuple[list[str], FloatArray, list[int]]:
        """Make vectors to be stored: points between two of those that were seen, with noise."""
        rng = np.random.default_rng(1)
        one, other = rng.integers(0, len(self._seen), (2, count))
        share = rng.random((count, 1), dtype=np.float32)
        noise = rng.standard_normal((count, self._seen.shape[1]), dtype=np.float32) / 2
        vectors = share * self._seen[one] + (1 - share) * self._seen[other] + noise
        return [str(place) for place in range(count)], vectors, (one % CLASSES).tolist()


def nearest_text(vectors: FloatArray, texts: FloatArray) -> Any:
    """Answer as CLIP does: the text with the largest cosine."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (unit @ texts).argmax(axis=1)


def sums(measured: dict[str, float]) -> dict[str, float]:
    """Put the parts together from pictures to answers."""
    searches = {name: seconds for name, seconds in measured.items() if name.startswith("search, ")}
    return {
        "mid, encode": measured["mid, encode"],
        **searches,
        **{
            f"mid, {name.removeprefix('search, ')}{END}": measured["mid, encode"] + seconds
            for name, seconds in searches.items()
        },
        "whole CLIP, same engine": measured["whole CLIP, encode"] + measured["whole CLIP, texts"],
        "open_clip as it comes": measured["open_clip as it comes"],
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def render(found: dict[str, Any]) -> str:
    """Write the figures as plain tables."""
    recalls = ", ".join(
        f"{index} ({'exact' if recall is None else f'recall@10 {recall:.3f}'})"
        for index, recall in found["recall"].items()
    )
    lines = [
        f"{found['machine']['processor']}, {found['machine']['cores']} cores; torch {found['torch']}",
        f"plan {found['plan']}",
        f"RN50 at {SIZE}×{SIZE}, {found['images']} pictures, {found['vectors']} stored vectors in FAISS: "
        f"{recalls}; medians of {found['rounds']} rounds",
        "",
        f"{'side':<36}{'s per 1,000':>12}{'min':>9}{'max':>9}",
    ]
    for name, spread in found["seconds_per_1000"].items():
        lines.append(f"{name:<36}{spread['median']:>12.2f}{spread['min']:>9.2f}{spread['max']:>9.2f}")
    for end, ratios in found["ratios"].items():
        lines += ["", f"{end + ', beside':<36}{'× its time':>12}{'min':>9}{'max':>9}{'at most':>9}"]
        for peer, spread in ratios.items():
            target = found["targets"][peer]
            lines.append(
                f"{peer:<36}{spread['median']:>12.3f}{spread['min']:>9.3f}{spread['max']:>9.3f}{target:>9.2f}"
            )
    lines += ["", f"{'mid beside CLIP, in the study':<36}{found['study_ratio']:>12.2f}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
