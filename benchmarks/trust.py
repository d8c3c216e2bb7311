"""Which measure of confidence tells mistakes, and which tells images of classes that are not stored.

    python benchmarks/trust.py --demo
    python benchmarks/trust.py --model local-dir:MODEL --train TRAIN --test TEST --unknown OTHER
    python benchmarks/trust.py coverage --model local-dir:MODEL --train TRAIN --test TEST
    python benchmarks/trust.py unknown --model local-dir:MODEL --train TRAIN --test TEST

TRAIN and TEST are folders with a sub-folder of images for each class, OTHER one of images of something else.
``--demo`` draws all of them itself and uses the CLIP that the package carries. For each stage and each k:

mistakes
    AUROC of each measure for the classifier's own mistakes: the chance that an incorrect answer is less sure
    than a correct one. 0.5 is chance.
left out
    AUROC for images of classes that were left out of the store (each fifth class), against test images of the
    others: the chance that the former are less sure.
other
    The same for the images of OTHER, against all test images.
kept
    The accuracy on one half of the test images of the four fifths that are surest by the share, and by the
    distance; the threshold was chosen on the other half. Beside it the accuracy of all.

Of each class the first images are used, in the order of their names.

``coverage`` holds some test images out, again and again, and asks for the sets of the others: how many of
them hold the true class, and how large they are. ``unknown`` leaves each pair of classes out: AUROC of each
score for their images, and how many of the others are turned away by a threshold for 5 %. Both keep the
vectors, and print each figure as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _promises import add_arguments
from _promises import run as run_promises

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.demo import demo_model, write_folders
from clipretrieval.evaluation import EvaluationReport, error_auroc, risk_coverage
from clipretrieval.images import ImageFolder, scan_folder

STAGES = ("pixel", "mid", "late", "final")
MEASURES = ("share", "margin", "distance")
COVERAGE = 0.8
LEFT_OUT = 5
"""Every such class is left out of the store."""


def main() -> None:
    """Run the benchmark and print its table."""
    if sys.argv[1:2] in (["coverage"], ["unknown"]):
        parser = argparse.ArgumentParser(description=f"{sys.argv[1]}: see the top of this file")
        add_arguments(parser)
        run_promises(sys.argv[1], parser.parse_args(sys.argv[2:]))
        return
    arguments = _arguments()
    if not arguments.demo:
        encoder = StagedEncoder(arguments.model, arguments.pretrained, stage="final")
        found = run(encoder, arguments.train, arguments.test, arguments.unknown, arguments)
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = write_folders(Path(name) / "images", train=200, test=100)
            encoder = StagedEncoder(demo_model(), stage="final")
            found = run(encoder, folder / "train", folder / "test", None, arguments)
    print(render(found))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", action="store_true", help="draw the images")
    parser.add_argument("--model", default="RN50", help="as for StagedEncoder (default RN50)")
    parser.add_argument("--pretrained", default=None, help="weights (default: the model's own)")
    parser.add_argument("--train", type=Path, help="folder to fit on")
    parser.add_argument("--test", type=Path, help="folder to classify")
    parser.add_argument("--unknown", type=Path, help="folder of images of something else")
    parser.add_argument("--stored", type=int, default=10_000, help="images to store (default 10000)")
    parser.add_argument("--tested", type=int, default=2000, help="images to classify (default 2000)")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 5, 20], help="neighbours that vote")
    parser.add_argument("--json", help="also write the figures there")
    arguments = parser.parse_args()
    if not arguments.demo and not (arguments.train and arguments.test):
        parser.error("pass --demo, or --train and --test")
    return arguments


def run(
    encoder: StagedEncoder, train: Path, test: Path, unknown: Path | None, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure every stage and k; a row each."""
    stored = _first(scan_folder(train), arguments.stored)
    tested = _first(scan_folder(test), arguments.tested)
    other = list(scan_folder(unknown).paths)[: arguments.tested] if unknown else []
    encoded = [encoder.encode_stages(paths, STAGES) for paths in (stored[0], tested[0])]
    strangers = encoder.encode_stages(other, STAGES) if other else None
    rows = []
    for stage in STAGES:
        vectors = [part[stage] for part in encoded]
        for k in arguments.k:
            rows.append({"stage": stage, "k": k, **_row(vectors, stored[1], tested[1], k)})
            if strangers is not None:
                report = _fitted(vectors[0], stored[1], k).evaluate(vectors[1], tested[1], mistakes=0)
                away = _asked(_fitted(vectors[0], stored[1], k), strangers[stage])
                rows[-1]["other"] = _against(report, away)
    return rows


def _row(vectors: list[Any], stored: list[str], tested: list[str], k: int) -> dict[str, Any]:
    report = _fitted(vectors[0], stored, k).evaluate(vectors[1], tested, mistakes=0)
    gone = set(sorted(set(stored))[::LEFT_OUT])
    known = [place for place, label in enumerate(stored) if label not in gone]
    fewer = _fitted(vectors[0][known], [stored[place] for place in known], k)
    inside = [place for place, label in enumerate(tested) if label not in gone]
    outside = [place for place, label in enumerate(tested) if label in gone]
    rest = fewer.evaluate(vectors[1][inside], [tested[place] for place in inside], mistakes=0)
    return {
        "accuracy": report.accuracy,
        "mistakes": {by: report.reliability(by).error_auroc for by in MEASURES},
        "left out": _against(rest, _asked(fewer, vectors[1][outside])),
        "kept": {by: _kept(report, by) for by in ("share", "distance")},
    }


def _fitted(vectors: Any, labels: list[str], k: int) -> RetrievalClassifier:
    return RetrievalClassifier(store="memory", k=k).fit(vectors, labels)


def _asked(classifier: RetrievalClassifier, vectors: Any) -> EvaluationReport:
    """Classify images that have no correct answer; the label is one that is never answered."""
    return classifier.evaluate(vectors, ["(none)"] * len(vectors), mistakes=0)


def _against(known: EvaluationReport, unknown: EvaluationReport) -> dict[str, float]:
    """Return how well each measure tells images of unknown classes from those of known ones."""
    is_known = np.arange(known.n_test + unknown.n_test) < known.n_test
    return {
        by: error_auroc(
            np.concatenate([known.reliability(by).values, unknown.reliability(by).values]), is_known, by=by
        )
        for by in MEASURES
    }


def _kept(report: EvaluationReport, by: str) -> dict[str, float]:
    """Choose a threshold on every other image, and measure it on the rest."""
    found = report.reliability(by)
    curve = risk_coverage(found.values[::2], found.correct[::2], by=by)
    threshold = curve.thresholds[(curve.coverage >= COVERAGE).argmax()]
    values, correct = found.values[1::2], found.correct[1::2]
    kept = values <= threshold if by == "distance" else values >= threshold
    return {
        "all": float(correct.mean()),
        "coverage": float(kept.mean()),
        "accuracy": float(correct[kept].mean()),
    }


def _first(folder: ImageFolder, most: int) -> tuple[list[Path], list[str]]:
    """Return the first images of each class, as many of each as go into `most`."""
    if folder.labels is None:
        raise SystemExit(f"{folder.root} has no class folders")
    each = most // len(folder.classes)
    taken: dict[str, int] = {}
    paths, labels = [], []
    for path, label in zip(folder.paths, folder.labels, strict=True):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= each:
            paths.append(path)
            labels.append(label)
    return paths, labels


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Write the figures as a Markdown table."""
    kinds = [kind for kind in ("mistakes", "left out", "other") if kind in rows[0]]
    head = ["stage", "k", "accuracy", *(f"{kind}: {by}" for kind in kinds for by in MEASURES)]
    head += ["half", "kept by share", "kept by distance"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for row in rows:
        cells = [row["stage"], str(row["k"]), f"{row['accuracy']:.2%}"]
        cells += [f"{row[kind][by]:.3f}" for kind in kinds for by in MEASURES]
        cells += [f"{row['kept']['share']['all']:.1%}"]
        cells += [f"{each['accuracy']:.1%} of {each['coverage']:.0%}" for each in row["kept"].values()]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
