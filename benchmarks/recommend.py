"""How often what `recommend` promises holds on images that it has not seen.

    python benchmarks/recommend.py --model local-dir:MODEL --images FOLDER

FOLDER has a sub-folder of images for each class. From it are drawn, `--draws` times each, at random: 40
images of each of three classes; 4,000 images, of which one fold is chosen on and another measured on; and
1,500. Each time `recommend` is called on them, its advice is fitted on them, by its own `classifier()`, and
evaluated on others of the same classes, up to 20,000, as few have luck of their own. Printed are

held
    how often that accuracy lay within the interval,
off
    the accuracy that was told less that on the others: its mean with its standard error, and its standard
    deviation,
width
    the mean width of the interval, and
naive
    how often the advised row's own interval held, which does not allow for the choice.

Every image is encoded once, whatever it is drawn for. With few draws the count is luck: what holds 95 times
of 100 holds fewer than 18 times of 20 in one try of 13, and fewer than 90 times of 100 in one of 35. The
others have luck of their own too: an interval from 800 images holds 93 times of 100 beside 6,000 others.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval import StagedEncoder, recommend
from clipretrieval.encoding import EncodedBatch
from clipretrieval.encoding.base import join_batches, select_images
from clipretrieval.images import ImageFolder, scan_folder

STAGES = ("layer1", "layer2", "mid", "late", "final")
OTHERS = 20_000
SETS = ((3, 40), (None, 4000), (None, 1500))
"""Classes, and images of each; or all classes, and images in all."""


class RememberingEncoder(StagedEncoder):
    """Encodes nothing twice: the vectors of a folder's images are looked up by their paths."""

    def remember(self, folder: ImageFolder) -> None:
        """Encode a folder."""
        outputs = [self._find(stage) for stage in STAGES]
        raws = ((path, "") for path in folder.paths)
        from clipretrieval.images import iter_raw

        whole = join_batches(list(super()._encode(iter_raw(raws), outputs, on_error="raise", skipped=None)))
        kept = {path: place for place, path in enumerate(folder.paths)}
        self._kept = (whole, kept)

    def _encode(self, raws: Iterator[Any], outputs: list[Any], **options: Any) -> Iterator[EncodedBatch]:
        whole, places = self._kept
        raws = list(raws)  # type: ignore[assignment]
        some = select_images(whole, [places[raw.payload] for raw in raws])
        yield EncodedBatch(
            ids=some.ids,
            vectors={output.name: some.vectors[output.name.split()[0]] for output in outputs},
            labels=[raw.label for raw in raws],
            sources=some.sources,
            indices=[raw.index for raw in raws],
        )


def draw(folder: ImageFolder, classes: int | None, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the places of images to recommend on, and of others of the same classes."""
    rng, labels = np.random.default_rng(seed), np.array(folder.labels)
    known = sorted(folder.classes)
    if classes is None:
        order = rng.permutation(len(labels))
        return order[:count], order[count : count + OTHERS]
    chosen = rng.choice(known, classes, replace=False)
    members = [rng.permutation(np.flatnonzero(labels == name)) for name in chosen]
    others = rng.permutation(np.concatenate([each[count:] for each in members]))
    return np.concatenate([each[:count] for each in members]), others[:OTHERS]


def measure(
    encoder: StagedEncoder, folder: ImageFolder, given: np.ndarray, others: np.ndarray
) -> dict[str, Any]:
    """Recommend on some images, and evaluate the advice on others."""
    paths, labels = folder.paths, folder.labels or ()

    def some(places: np.ndarray) -> tuple[list[Path], list[str]]:
        return [paths[place] for place in places], [labels[place] for place in places]

    found = recommend(
        *some(given),
        encoder=encoder,
        stages=STAGES,
        heads=("votes", "discriminant"),
        timed_images=1,
        cascades=False,  # what is advised is fitted on all images
    )
    made = found.classifier().fit(*some(given))
    accuracy = float(made.score(*some(others)))
    made.store_.close()
    low, high = found.interval
    row = found.advice
    return {
        "advice": f"{row['stage']} {row['head']}",
        "told": found.accuracy,
        "low": low,
        "high": high,
        "accuracy": accuracy,
        "held": low <= accuracy <= high,
        "naive": row["low"] <= accuracy <= row["high"],
    }


def processor() -> str:
    """Return what the machine calls its processor."""
    try:
        shown = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor()
    fields = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    return fields.get("Model name", platform.processor()).strip()


def main() -> None:
    """Measure all sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--pretrained", default="openai")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--json", type=Path, help="also write each draw there")
    arguments = parser.parse_args()
    folder = scan_folder(arguments.images)
    encoder = RememberingEncoder(arguments.model, arguments.pretrained)
    encoder.remember(folder)
    print(f"{len(folder.paths)} images of {len(folder.classes)} classes; {processor()}", flush=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for classes, count in SETS:
        name = f"{classes} × {count}" if classes else f"{count}"
        started, draws = time.perf_counter(), list[dict[str, Any]]()
        for seed in range(arguments.draws):
            draws.append(measure(encoder, folder, *draw(folder, classes, count, seed)))
        results[name] = draws
        off = np.array([each["told"] - each["accuracy"] for each in draws])
        spread = 100 * off.std()
        width = np.mean([each["high"] - each["low"] for each in draws])
        advised = ", ".join(
            f"{what} {times}" for what, times in Counter(each["advice"] for each in draws).most_common()
        )
        print(
            f"{name}: held {sum(each['held'] for each in draws)} of {len(draws)}, "
            f"off {100 * off.mean():+.2f} (± {spread / len(off) ** 0.5:.2f}) ± {spread:.2f} points, "
            f"width {100 * width:.2f} points, "
            f"naive {sum(each['naive'] for each in draws)} of {len(draws)}; advised {advised}; "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
