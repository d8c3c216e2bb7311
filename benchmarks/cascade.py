"""What a cascade saves, whether its promise holds, and whether its time follows its arithmetic.

    python benchmarks/cascade.py accuracy --model local-dir:MODEL --train FOLDER --test FOLDER
    python benchmarks/cascade.py accuracy --drawn
    python benchmarks/cascade.py promise --model local-dir:MODEL --train FOLDER --test FOLDER
    python benchmarks/cascade.py engine

``accuracy`` fits a cascade, calibrates it on images of the same folder that were not fitted, and answers the
test images with it and with its last exit alone, taking turns. ``promise`` draws calibration and test images
200 times from what all exits said of all images that were not fitted, and counts how often more is lost than
was promised. ``engine`` encodes with RN50 (random weights), while a share of the images leaves at each exit
by lot, and divides the seconds by those of all images at ``final``, and by the share of their arithmetic.

Arithmetic is given in the model's own multiply-adds and in RN50's proportions.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _findings import Findings, markdown_table
from _sides import SIZE, lively_rn50

from clipretrieval import CascadeClassifier, StagedEncoder
from clipretrieval.cascade.calibration import calibrate_policy, losses
from clipretrieval.cascade.cascade_measurement import evidence_of
from clipretrieval.cascade.exit_policy import ExitEvidence
from clipretrieval.cascade.policy_learning import learn_policy
from clipretrieval.demo import KINDS, draw
from clipretrieval.demo.embedded import demo_model
from clipretrieval.images import scan_folder

STAGES = ("layer1", "layer2", "mid", "late")
RN50 = {"layer1": 1.03, "layer2": 2.40, "mid": 4.21, "late": 5.37, "final": 5.39}
"""Multiply-adds of RN50 at 224 pixels, 10⁹: `StagedEncoder("RN50").multiply_adds(stage)`."""


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("accuracy", "promise"):
        command = commands.add_parser(name)
        command.add_argument("--model", default=demo_model(), help="as for StagedEncoder (the demo's)")
        command.add_argument("--train", type=Path, help="class folders, to fit on and to calibrate on")
        command.add_argument("--test", type=Path, help="class folders to answer")
        command.add_argument("--drawn", action="store_true", help="the demo's drawn kinds, without folders")
        command.add_argument("--calibrated", type=int, help="images of --train (5000; 1000 drawn)")
        command.add_argument("--fitted", type=int, help="other images of --train (all others; 2000 drawn)")
        command.add_argument("--tested", type=int, help="images of --test (all; 2000 drawn)")
        command.add_argument("--stages", nargs="+", default=list(STAGES))
        command.add_argument("--head", default="fused")
        command.add_argument("--max-loss", type=float, default=0.005)
        command.add_argument("--confidence", type=float, default=0.95)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, help="JSON file, kept up to date; a .md comes beside it")
    commands.choices["accuracy"].add_argument("--rounds", type=int, default=3)
    commands.choices["accuracy"].add_argument(
        "--budgets", nargs="*", type=float, default=[0.7, 0.5], help="shares of the last exit's arithmetic"
    )
    commands.choices["accuracy"].add_argument("--html", type=Path, help="the evaluation's page")
    commands.choices["promise"].add_argument("--draws", type=int, default=200)
    engine = commands.add_parser("engine")
    engine.add_argument("--images", type=int, default=1000)
    engine.add_argument("--rounds", type=int, default=7)
    engine.add_argument("--rates", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    engine.add_argument("--stages", nargs="+", default=[*STAGES[:3], "final"])
    engine.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    {"accuracy": accuracy, "promise": promise, "engine": engine_speed}[arguments.command](arguments)


def accuracy(arguments: argparse.Namespace) -> None:
    """Measure accuracy, arithmetic and time beside the last exit alone."""
    fitted, calibrated, tested = _images(arguments)
    found = Findings(arguments.out, _accuracy_table, **_settings(arguments, fitted, calibrated, tested))
    cascade = _fitted(arguments, fitted)
    images, labels = tested
    truth, last = np.array(labels), cascade.exits_[-1]

    def measure(name: str, **promised: Any) -> None:
        cascade.calibrate(*calibrated, **promised)
        seconds: dict[str, list[float]] = {"cascade": [], "last": []}
        for _ in range(arguments.rounds):
            taken, answers = _timed(lambda: cascade.predict(images))
            seconds["cascade"].append(taken)
            taken, late = _timed(lambda: last.predict(images))
            seconds["last"].append(taken)
        report = cascade.evaluate(images, labels, mistakes=12 if arguments.html else 0)
        if not (report.y_pred == answers).all() or report.loss is None:
            raise SystemExit("the evaluation's answers are others than those that were timed")
        ratios = [a / b for a, b in zip(seconds["cascade"], seconds["last"], strict=True)]
        found.add(
            setting=name,
            accuracy=report.accuracy,
            last_accuracy=float((late == truth).mean()),
            loss=report.loss,
            own_arithmetic=report.arithmetic,
            rn50_arithmetic=_rn50_share(cascade.stages, [each.share for each in report.exits]),
            seconds_ratio=statistics.median(ratios),
            lowest=min(ratios),
            highest=max(ratios),
            left=[each.left for each in report.exits],
            left_accuracy=[each.accuracy for each in report.exits],
            alone=[each.accuracy_alone for each in report.exits],
        )
        if arguments.html and promised:
            report.to_html(arguments.html)

    measure("promised", max_loss=arguments.max_loss, confidence=arguments.confidence)
    for share in arguments.budgets:
        measure(f"budget of {share:g}", budget=share * cascade.encoder.multiply_adds(cascade.stages[-1]))
    print(found)


def promise(arguments: argparse.Namespace) -> None:
    """Count how often the promise is broken."""
    fitted, calibrated, tested = _images(arguments)
    found = Findings(arguments.out, _promise_table, **_settings(arguments, fitted, calibrated, tested))
    cascade = _fitted(arguments, fitted)
    costs = [cascade.encoder.multiply_adds(stage) for stage in cascade.stages]
    parts = [_evidence(cascade, each) for each in (calibrated, tested)]
    together = ExitEvidence(
        *(
            np.concatenate([getattr(part, name) for part in parts], axis=1)
            for name in ("margins", "agrees", "distances", "correct")
        )
    )
    learned = learn_policy(cascade.exits_, cascade.certainty)
    n, broken, lost, shares = len(parts[0]), 0, list[float](), list[float]()
    for draw_ in range(arguments.draws):
        order = np.random.default_rng([arguments.seed, draw_]).permutation(len(together))
        policy, _ = calibrate_policy(
            learned,
            together.take(order[:n]),
            costs,
            max_loss=arguments.max_loss,
            confidence=arguments.confidence,
            budget=None,
        )
        others = together.take(order[n:])
        lost.append(float(losses(others, policy).mean()))
        shares.append(float(np.array(costs)[policy.exits(others)].mean()) / costs[-1])
        broken += lost[-1] > arguments.max_loss
    found.add(
        draws=arguments.draws,
        broken=broken,
        share_broken=broken / arguments.draws,
        mean_loss=statistics.mean(lost),
        highest_loss=max(lost),
        arithmetic=statistics.mean(shares),
        lowest_arithmetic=min(shares),
        highest_arithmetic=max(shares),
    )
    print(found)


def engine_speed(arguments: argparse.Namespace) -> None:
    """Measure whether seconds follow the arithmetic."""
    found = Findings(arguments.out, _engine_table, images=arguments.images, rounds=arguments.rounds)
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (arguments.images, SIZE, SIZE, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        _, weights = lively_rn50(Path(folder))
        encoder = StagedEncoder("RN50", str(weights), stage=arguments.stages[-1])
        encoder.encode(images[:1])  # reads the weights
    stages, n = arguments.stages, arguments.images
    costs = np.array([encoder.multiply_adds(stage) for stage in stages])

    def whole(stage: str) -> Callable[[], None]:
        def run() -> None:
            for _ in encoder.stream(images, stages=(stage,)):
                pass

        return run

    def cascaded(places: Any) -> Callable[[], None]:
        def stay_on(place: int, batch: Any) -> Any:
            return places[batch.indices] > place

        def run() -> None:
            for _ in encoder.stream_exits(images, stages=stages, stay_on=stay_on):
                pass

        return run

    lots = rng.random((len(stages) - 1, n))
    sides: dict[str, tuple[Callable[[], None], float]] = {
        f"all at {stage}": (whole(stage), float(cost / costs[-1]))
        for stage, cost in zip(stages, costs, strict=True)
    }
    for rate in arguments.rates:
        leaves = lots < rate
        places = np.where(leaves.any(axis=0), leaves.argmax(axis=0), len(stages) - 1)
        sides[f"{rate:g} leave at each exit"] = (
            cascaded(places),
            float(costs[places].mean() / costs[-1]),
        )
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(arguments.rounds + 1):
        for name, (run, _) in sides.items():
            seconds, _ = _timed(run)
            if round_:  # the first warms up
                taken[name].append(seconds)
    base = taken[f"all at {stages[-1]}"]
    for name, (_, share) in sides.items():
        ratios = [a / b / share for a, b in zip(taken[name], base, strict=True)]
        found.add(
            side=name,
            seconds=statistics.median(taken[name]),
            arithmetic=share,
            over_arithmetic=statistics.median(ratios),
            lowest=min(ratios),
            highest=max(ratios),
        )
    print(found)


def _images(arguments: argparse.Namespace) -> tuple[tuple[list[Any], list[str]], ...]:
    """Return images to fit on, to calibrate on and to test on, with their labels."""
    rng = np.random.default_rng(arguments.seed)
    if arguments.drawn:
        counts = (arguments.fitted or 2000, arguments.calibrated or 1000, arguments.tested or 2000)
        kinds = [KINDS[place % len(KINDS)] for place in range(sum(counts))]
        drawn = [draw(kind, rng) for kind in kinds]
        ends = [0, *itertools.accumulate(counts)]
        return tuple((drawn[a:b], kinds[a:b]) for a, b in itertools.pairwise(ends))
    train, test = scan_folder(arguments.train), scan_folder(arguments.test)
    order, asked = rng.permutation(len(train.labels)), rng.permutation(len(test.labels))
    calibrated = arguments.calibrated or 5000
    fitted = arguments.fitted or len(order) - calibrated
    parts = (
        (train, order[calibrated : calibrated + fitted]),
        (train, order[:calibrated]),
        (test, asked[: arguments.tested or len(asked)]),
    )
    return tuple(
        ([folder.paths[place] for place in places], [folder.labels[place] for place in places])
        for folder, places in parts
    )


def _settings(arguments: argparse.Namespace, *parts: tuple[list[Any], list[str]]) -> dict[str, Any]:
    counts = zip(("fitted", "calibrated", "tested"), (len(images) for images, _ in parts), strict=True)
    return {
        "stages": " ".join(arguments.stages),
        "head": arguments.head,
        "max_loss": arguments.max_loss,
        "confidence": arguments.confidence,
        **dict(counts),
    }


def _fitted(arguments: argparse.Namespace, fitted: tuple[list[Any], list[str]]) -> CascadeClassifier:
    encoder = StagedEncoder(arguments.model)
    return CascadeClassifier(encoder, arguments.stages, head=arguments.head).fit(*fitted)


def _evidence(cascade: CascadeClassifier, part: tuple[list[Any], list[str]]) -> ExitEvidence:
    return evidence_of(cascade._asked_all(*part, "raise", lambda *_: None)[0])


def _rn50_share(stages: Sequence[str], shares: Sequence[float]) -> float:
    costs = [RN50[stage.split(":")[0].split("+")[-1]] for stage in stages]
    return float(np.dot(costs, shares)) / costs[-1]


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _accuracy_table(rows: list[dict[str, Any]]) -> str:
    head = [
        "setting",
        "accuracy",
        "last exit",
        "lost",
        "arithmetic",
        "as RN50",
        "seconds",
        "left at each exit",
    ]
    return markdown_table(
        head,
        [
            [
                row["setting"],
                f"{row['accuracy']:.2%}",
                f"{row['last_accuracy']:.2%}",
                f"{row['loss']:.2%}",
                f"{row['own_arithmetic']:.3f} ×",
                f"{row['rn50_arithmetic']:.3f} ×",
                f"{row['seconds_ratio']:.2f} × ({row['lowest']:.2f} to {row['highest']:.2f})",
                ", ".join(map(str, row["left"])),
            ]
            for row in rows
        ],
    )


def _promise_table(rows: list[dict[str, Any]]) -> str:
    head = ["draws", "broken", "mean loss", "highest", "arithmetic"]
    return markdown_table(
        head,
        [
            [
                str(row["draws"]),
                f"{row['broken']} ({row['share_broken']:.1%})",
                f"{row['mean_loss']:.2%}",
                f"{row['highest_loss']:.2%}",
                f"{row['arithmetic']:.3f} × "
                f"({row['lowest_arithmetic']:.3f} to {row['highest_arithmetic']:.3f})",
            ]
            for row in rows
        ],
    )


def _engine_table(rows: list[dict[str, Any]]) -> str:
    head = ["", "seconds", "arithmetic", "seconds over arithmetic"]
    return markdown_table(
        head,
        [
            [
                row["side"],
                f"{row['seconds']:.2f}",
                f"{row['arithmetic']:.3f} ×",
                f"{row['over_arithmetic']:.3f} ({row['lowest']:.3f} to {row['highest']:.3f})",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
