"""One, four and sixteen images a class: do texts and images together answer better than either by itself?

    python benchmarks/few_shot.py DIR --model local-dir:PATH --json few.json

DIR has a folder ``test``, of which alone images are taken, since a CLIP may have seen others; or is itself a
folder of classes. In each class, only every second image is used, by the order of the files' names, beginning
with the second: what is set beforehand in ``heads/text_prior.py`` was chosen on the first, third and so on of
CIFAR-10's test folder (``--half even``) and of images that the demo draws. Only that it is a level of 1 % and
not of 5 % was decided after a look at the others, too.

All are encoded once, at the stage ``final``. Each draw stores some images of each class, and classifies the
same others in four ways: by CLIP's texts alone, by the nearest image alone, by the fused head, and by the
fused head with ``text_weight="auto"``. The last is compared with the better of the first two by McNemar's
exact test on the images of the draw; Holm's correction is over the draws of one number of images. What is
measured so far is written after every draw.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier, StagedEncoder, ZeroShotClassifier
from clipretrieval.evaluation import mcnemar_exact
from clipretrieval.images import scan_folder
from clipretrieval.prompts import PHOTO_PROMPT, STUDY_PROMPT
from clipretrieval.types import AnyArray, FloatArray

TEXTS, VOTES, FUSED, BOTH = "texts alone", "votes alone, k=1", "fused", "fused with texts"
WAYS: dict[str, dict[str, Any]] = {
    VOTES: {"head": "votes", "text_weight": None},
    FUSED: {"head": "fused", "text_weight": None},
    BOTH: {"head": "fused", "text_weight": "auto"},
}
HALVES = {"odd": slice(1, None, 2), "even": slice(0, None, 2), "both": slice(None)}
LEVEL = 0.05


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    warnings.filterwarnings("ignore", message="k=20 is more than", category=ClipRetrievalWarning)
    print(f"processor: {_processor()}, {os.cpu_count()} cores", file=sys.stderr)
    found = Findings(arguments)
    try:
        run(arguments, found)
    except KeyboardInterrupt:
        print("cut short: these are the draws so far", file=sys.stderr)
    print(found.table())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="images in a folder for each class, or one with test")
    parser.add_argument("--model", required=True, help="such as local-dir:PATH")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16], help="images stored a class")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--tested", type=int, default=2000, help="images that a draw classifies, at most")
    parser.add_argument("--most", type=int, default=500, help="images encoded a class, at most")
    parser.add_argument("--half", choices=list(HALVES), default="odd", help="places of the images, from 0")
    parser.add_argument("--photo", action="store_true", help=f"ask {PHOTO_PROMPT!r}")
    parser.add_argument("--wrong", type=int, default=0, help="classes of a draw that swap names, in a circle")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--json", type=Path, help="write the figures there after every draw")
    return parser.parse_args()


def run(arguments: argparse.Namespace, found: Findings) -> None:
    """Encode once, then draw."""
    encoder = StagedEncoder(arguments.model, stage="final")
    paths, names = chosen(arguments.folder, HALVES[arguments.half], arguments.most)
    print(f"encoding {len(paths)} images", file=sys.stderr)
    vectors, labels = encoder.encode(paths), np.array(names)
    known = Encoded(encoder, vectors)
    classes = sorted(set(names))
    called = {label: label.replace("_", " ") for label in classes}
    template = PHOTO_PROMPT if arguments.photo else STUDY_PROMPT
    zero_shot = ZeroShotClassifier(encoder, called, templates=template)
    cosines = zero_shot.cosines(vectors)
    for shots in arguments.shots:
        for draw in range(arguments.draws):
            rng = np.random.default_rng([arguments.seed, shots, draw])
            rows = np.concatenate(
                [rng.choice(np.flatnonzero(labels == name), shots, replace=False) for name in classes]
            )
            others = np.setdiff1d(np.arange(len(labels)), rows)
            tested = rng.choice(others, min(arguments.tested, len(others)), replace=False)
            turned, order = rng.choice(len(classes), arguments.wrong, replace=False), np.arange(len(classes))
            order[turned] = np.roll(turned, 1)
            named = {label: called[classes[place]] for label, place in zip(classes, order, strict=True)}
            questions, truth = known.images(tested), labels[tested]
            by_text = zero_shot.classes_[cosines[tested][:, order].argmax(axis=1)]
            right, started = {TEXTS: by_text == truth}, time.perf_counter()
            classifier = RetrievalClassifier(known, store="memory", normalize=True, transform=None)
            classifier.set_params(class_names=named, templates=template)
            classifier.fit(known.images(rows), labels[rows].tolist())
            for name, params in WAYS.items():
                classifier.set_params(**params)
                right[name] = classifier.predict(questions) == truth
            weights = classifier.head_.learned.weights  # type: ignore[attr-defined]
            found.add(shots, draw, right, weights, time.perf_counter() - started)


class Encoded:
    """An encoder that has encoded already: images of one pixel stand for the vectors.

    Parameters
    ----------
    encoder : StagedEncoder
    vectors : ndarray of float32, shape (n, dim)
    """

    stage = "final"

    def __init__(self, encoder: StagedEncoder, vectors: FloatArray) -> None:
        self.dim, self.fingerprint, self.text = encoder.dim, encoder.fingerprint, encoder.text
        self._vectors = vectors

    def images(self, rows: AnyArray) -> list[Image.Image]:
        """Return the images that stand for some vectors: the row in the pixel's three bytes."""
        return [Image.new("RGB", (1, 1), tuple(int(row).to_bytes(3, "big"))) for row in rows]

    def encode(self, images: list[Image.Image]) -> FloatArray:
        """Look the vectors up."""
        pixels = [bytes(np.asarray(image)[0, 0]) for image in images]
        return self._vectors[[int.from_bytes(pixel, "big") for pixel in pixels]]


def chosen(folder: Path, half: slice, most: int) -> tuple[list[str], list[str]]:
    """Return the paths and labels of some images of each class."""
    found = scan_folder(folder / "test" if (folder / "test").is_dir() else folder)
    by_class: dict[str, list[str]] = defaultdict(list)
    for path, label in zip(found.paths, found.labels or (), strict=True):
        by_class[label].append(str(path))
    kept = [(path, label) for label, paths in by_class.items() for path in sorted(paths)[half][:most]]
    return [path for path, _ in kept], [label for _, label in kept]


class Findings:
    """What was measured so far, kept in a file.

    Parameters
    ----------
    arguments : argparse.Namespace
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._file = arguments.json
        self.content: dict[str, Any] = {
            "command": " ".join(["python", *sys.argv]),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "places": arguments.half,
            "draws": [],
        }

    def add(
        self, shots: int, draw: int, right: dict[str, AnyArray], weights: dict[str, float], seconds: float
    ) -> None:
        """Take the answers of a draw: of each way, which are right."""
        accuracies = {name: float(hits.mean()) for name, hits in right.items()}
        better = max((TEXTS, VOTES), key=lambda name: accuracies[name])
        test = mcnemar_exact(right[BOTH], right[better])
        self.content["draws"].append(
            {
                "images_a_class": shots,
                "draw": draw,
                "accuracy": accuracies,
                "better_alone": better,
                "only_fused_right": test.gained,
                "only_better_right": test.lost,
                "p": test.p_value,
                "weights": weights,
                "seconds": seconds,
            }
        )
        print(f"{shots} images a class, draw {draw}: {accuracies}, {seconds:.1f} s", file=sys.stderr)
        if self._file:
            part = self._file.with_suffix(".part")
            part.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
            part.replace(self._file)

    def table(self) -> str:
        """Return the means over the draws, and how often fused is significantly worse, in Markdown."""
        ways = (TEXTS, VOTES, FUSED, BOTH)
        lines = [
            f"{self.content['command']}\n{self.content['processor']}, {self.content['cores']} cores, "
            f"images at {self.content['places']} places\n",
            f"| images a class | {' | '.join(ways)} | against the better alone | worse, p < 0.05 | by Holm "
            "| better, p < 0.05 |",
            "|" + "---|" * (len(ways) + 5),
        ]
        by_shots: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for draw in self.content["draws"]:
            by_shots[draw["images_a_class"]].append(draw)
        for shots, draws in by_shots.items():
            means = [100 * np.mean([draw["accuracy"][way] for draw in draws]) for way in ways]
            gains = [
                100 * (draw["accuracy"][BOTH] - draw["accuracy"][draw["better_alone"]]) for draw in draws
            ]
            worse = [
                draw["p"] if draw["only_fused_right"] < draw["only_better_right"] else 1 for draw in draws
            ]
            better = [
                draw["p"] if draw["only_fused_right"] > draw["only_better_right"] else 1 for draw in draws
            ]
            cells = [
                *(f"{mean:.1f}" for mean in means),
                f"{np.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})",
                f"{sum(p < LEVEL for p in worse)} of {len(draws)}",
                f"{holm(worse)}",
                f"{sum(p < LEVEL for p in better)}",
            ]
            lines.append(f"| {shots} | {' | '.join(cells)} |")
        return "\n".join(lines)


def holm(values: list[float]) -> int:
    """Return how many tests are significant after Holm's correction."""
    for rank, p in enumerate(sorted(values)):
        if p >= LEVEL / (len(values) - rank):
            return rank
    return len(values)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
