"""Measure audits: wrong labels found, changed copies found, time and memory.

    python benchmarks/audit.py labels --vectors train.npz --stage mid --out a.json
    python benchmarks/audit.py copies --model local-dir:MODEL --train TRAIN --test TEST --out b.json
    python benchmarks/audit.py scale --sizes 10000 100000 --out c.json

TRAIN and TEST are folders with a sub-folder of images for each class; ``--vectors`` takes a file of
`numpy.savez` with an array for each stage and the labels as ``y``. Times are the processor's, as
`time.process_time` has them, of one thread unless ``OMP_NUM_THREADS`` says otherwise. Figures are written to
``--out`` (JSON, and Markdown beside it) after every row.

labels
    A share of the labels is flipped to another class, each as likely. How many of as many images as were
    flipped, those that are ranked first, are flipped ones (precision); the area under the ROC curve; the
    estimate of how many there are. Beside it the share of the 20 nearest neighbors that are of another class,
    and the time that the audit takes in parts of one `kneighbors` of all vectors.
copies
    Some of TEST's images are stored with TRAIN's; copies as JPEG of quality 40, at 0.8 of the size, mirrored
    and with 5 % cut off are the test images. Recall of each, and how many other pairs are reported.
scale
    Random vectors of 512 dimensions in clusters: processor time and peak memory of an audit and of one
    `kneighbors` at each size, each in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _findings import Findings, markdown_table
from PIL import Image, ImageOps
from scipy.stats import rankdata

from clipretrieval import RetrievalClassifier, StagedEncoder, audit
from clipretrieval.auditing.evidence import gather_evidence
from clipretrieval.auditing.label_errors import find_label_errors
from clipretrieval.auditing.subject import Subject
from clipretrieval.heads import Discriminant
from clipretrieval.images import scan_folder

K = 20
DIM, CLUSTERS, SPREAD = 512, 100, 3.0


def main() -> None:
    """Run what was asked for and print its table."""
    arguments = _arguments()
    print(arguments.measure(arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="{labels,copies,scale}")
    flipped = commands.add_parser("labels")
    flipped.add_argument("--vectors", type=Path, required=True)
    flipped.add_argument("--stage", default="mid")
    flipped.add_argument("--share", type=float, nargs="+", default=[0.05])
    flipped.add_argument("--seeds", type=int, default=3)
    copied = commands.add_parser("copies")
    copied.add_argument("--model", required=True)
    copied.add_argument("--stage", default="mid")
    copied.add_argument("--train", type=Path, required=True)
    copied.add_argument("--test", type=Path, required=True)
    copied.add_argument("--copied", type=int, default=500)
    copied.add_argument("--output", type=Path, help="keep what is encoded there")
    scaled = commands.add_parser("scale")
    scaled.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    scaled.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    for command, measure in ((flipped, labels), (copied, copies), (scaled, scale)):
        command.add_argument("--out", type=Path)
        command.set_defaults(measure=measure)
    return parser.parse_args()


def labels(arguments: argparse.Namespace) -> Findings:
    """Flip labels and rank them."""
    with np.load(arguments.vectors) as held:
        vectors, truth = held[arguments.stage], held["y"]
    classes = np.unique(truth)
    findings = Findings(arguments.out, _labels_table, stage=arguments.stage, images=len(truth), k=K)
    for share in arguments.share:
        for seed in range(arguments.seeds):
            rng = np.random.default_rng(seed)
            wrong = np.zeros(len(truth), dtype=bool)
            wrong[rng.choice(len(truth), round(share * len(truth)), replace=False)] = True
            moved = np.searchsorted(classes, truth) + wrong * rng.integers(1, len(classes), len(truth))
            classifier = RetrievalClassifier().fit(vectors, classes[moved % len(classes)])
            findings.add(share=share, seed=seed, **_judged(classifier, vectors, wrong))
    return findings


def _judged(classifier: RetrievalClassifier, vectors: Any, wrong: Any) -> dict[str, Any]:
    search, _ = _timed(lambda: classifier.kneighbors(vectors, K + 1))
    whole, report = _timed(lambda: audit(classifier, limit=0))
    subject = Subject.of(classifier.retriever_.index)
    evidence = gather_evidence(subject, K, Discriminant(), "discriminant", None, lambda done, total: None)
    errors = find_label_errors(evidence, subject.codes, len(subject.classes))
    disagreement = (subject.codes[evidence.near] != subject.codes[:, None]).mean(axis=1)
    # Records are in the order of their ids.
    flipped = wrong[_order(vectors)]
    count = int(wrong.sum())
    rank = np.empty(len(wrong))
    rank[errors.ranked()] = np.arange(len(wrong), 0, -1)
    found = {
        "flipped": count,
        "precision": _precision(rank, flipped),
        "auroc": _auroc(rank, flipped),
        "votes_precision": _precision(disagreement, flipped),
        "votes_auroc": _auroc(disagreement, flipped),
        "expected": errors.estimate.expected,
        "low": errors.estimate.low,
        "high": errors.estimate.high,
        "listed_precision": float(flipped[errors.ranked()[: errors.estimate.listed]].mean()),
        "search_s": search,
        "audit_s": whole,
        "ratio": whole / search,
    }
    return {**found, "parts_s": {name: round(taken, 2) for name, taken in report.seconds.items()}}


def _order(vectors: Any) -> Any:
    from clipretrieval.encoding.streams import vector_batches

    return np.argsort([name for batch in vector_batches(vectors) for name in batch.ids], kind="stable")


def _precision(scores: Any, wrong: Any) -> float:
    return float(wrong[np.argsort(-scores, kind="stable")[: int(wrong.sum())]].mean())


def _auroc(scores: Any, wrong: Any) -> float:
    count = int(wrong.sum())
    above = rankdata(scores)[wrong].sum() - count * (count + 1) / 2
    return float(above / (count * (len(wrong) - count)))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = call()
    return time.process_time() - started, found


def _labels_table(rows: list[dict[str, Any]]) -> str:
    head = [
        "share, seed",
        "flipped",
        "precision",
        "of votes",
        "AUROC",
        "of votes",
        "estimate",
        "× kneighbors",
    ]
    return markdown_table(
        head,
        [
            [
                f"{row['share']:.0%}, {row['seed']}",
                str(row["flipped"]),
                f"{row['precision']:.1%}",
                f"{row['votes_precision']:.1%}",
                f"{row['auroc']:.4f}",
                f"{row['votes_auroc']:.4f}",
                f"{row['low']:,.0f} to {row['high']:,.0f}",
                f"{row['ratio']:.2f}",
            ]
            for row in rows
        ],
    )


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return Image.open(encoded)


def _cropped(image: Image.Image) -> Image.Image:
    cut = max(1, round(0.025 * min(image.size)))
    return image.crop((cut, cut, image.width - cut, image.height - cut))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: _jpeg(image, 40),
    "smaller": lambda image: image.resize(tuple(round(0.8 * side) for side in image.size)),  # type: ignore[arg-type]
    "mirrored": ImageOps.mirror,
    "cropped": _cropped,
}


def copies(arguments: argparse.Namespace) -> Findings:
    """Find changed copies among the images that they were made of and others."""
    train, test = scan_folder(arguments.train), scan_folder(arguments.test)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(test.paths), arguments.copied, replace=False))
    originals = [test.paths[place] for place in chosen]
    stored = [*train.paths, *originals]
    given = [*(train.labels or ()), *((test.labels or ())[place] for place in chosen)]
    findings = Findings(arguments.out, _copies_table, stage=arguments.stage, stored=len(stored))
    with tempfile.TemporaryDirectory() as folder:
        made: list[Path] = []
        for name, change in CHANGES.items():
            for place, path in zip(chosen, originals, strict=True):
                with Image.open(path) as image:
                    changed = change(image.convert("RGB"))
                quality: dict[str, Any] = {"quality": 40} if name == "jpeg" else {}
                target = Path(folder) / f"{place:05}-{name}.{'jpg' if name == 'jpeg' else 'png'}"
                (_recoded(path) if name == "jpeg" else changed).save(target, **quality)
                made.append(target)
        encoder = StagedEncoder(arguments.model, stage=arguments.stage)
        taken, report = _timed(
            lambda: audit(
                stored,
                given,
                encoder=encoder,
                X_test=made,
                parts=["duplicate", "leak", "tiny", "blank"],
                limit=None,
                output=arguments.output,
            )
        )
    source = {str(path): int(place) for place, path in zip(chosen, originals, strict=True)}
    whole: dict[str, set[int]] = {name: set() for name in CHANGES}
    others: set[tuple[str, str]] = set()
    for group in report.groups("leak"):
        kept = {source.get(str(each.source), str(each.source)) for each in group if each.where == "train"}
        for each in group:
            if each.where == "test":
                place, name = Path(str(each.source)).stem.split("-")
                if int(place) in kept:
                    whole[name].add(int(place))
                others |= {(place, str(other)) for other in kept if other != int(place)}
    for name, found in whole.items():
        findings.add(change=name, copies=len(chosen), found=len(found), recall=len(found) / len(chosen))
    findings.add(
        change="other images in their groups", copies=len(chosen), found=len(others), recall=None, s=taken
    )
    findings.add(change="duplicates stored", copies=None, found=report.counts["duplicate"], recall=None)
    print("\n".join(f"{place} {other}" for place, other in sorted(others)), file=sys.stderr)
    return findings


def _recoded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _copies_table(rows: list[dict[str, Any]]) -> str:
    return markdown_table(
        ["change", "copies", "found", "recall"],
        [
            [
                row["change"],
                str(row["copies"] or ""),
                str(row["found"]),
                "" if row["recall"] is None else f"{row['recall']:.1%}",
            ]
            for row in rows
        ],
    )


def scale(arguments: argparse.Namespace) -> Findings | str:
    """Measure time and memory at several sizes."""
    if arguments.one:
        return json.dumps(_one(int(arguments.one[0]), arguments.one[1]))
    findings = Findings(arguments.out, _scale_table, dim=DIM, k=K)
    for size in arguments.sizes:
        row: dict[str, Any] = {"images": size}
        for what in ("kneighbors", "audit"):
            command = [sys.executable, __file__, "scale", "--one", str(size), what]
            row.update(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        findings.add(**row, ratio=row["audit_s"] / row["kneighbors_s"])
    return findings


def _one(size: int, what: str) -> dict[str, float]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLUSTERS, size)
    means = SPREAD * rng.standard_normal((CLUSTERS, DIM), dtype=np.float32) / np.sqrt(DIM).astype(np.float32)
    vectors = means[truth] + rng.standard_normal((size, DIM), dtype=np.float32) / np.float32(8)
    classifier = RetrievalClassifier().fit(vectors, truth)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what == "audit":
        taken, _ = _timed(lambda: audit(classifier))
    else:
        taken, _ = _timed(lambda: classifier.kneighbors(vectors, K + 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {f"{what}_s": taken, f"{what}_mb": (peak - before) / 1024, f"{what}_peak_mb": peak / 1024}


def _scale_table(rows: list[dict[str, Any]]) -> str:
    head = ["images", "kneighbors, s", "audit, s", "×", "memory on top, MB", "peak, MB"]
    return markdown_table(
        head,
        [
            [
                f"{row['images']:,}",
                f"{row['kneighbors_s']:.1f}",
                f"{row['audit_s']:.1f}",
                f"{row['ratio']:.2f}",
                f"{row['audit_mb']:.0f}",
                f"{row['audit_peak_mb']:.0f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
