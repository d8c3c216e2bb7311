"""Whether exporting pays, and in 8 bits: by ONNX Runtime and OpenVINO, beside the plan of this machine.

    python benchmarks/int8.py speed --json s.json
    python benchmarks/int8.py accuracy --model local-dir:MODEL --train TRAIN --test TEST --json a.json

Needs ``pip install "clipretrieval[bench]"``.

speed
    RN50 at 224×224 with random weights: all sides take turns, medians over the rounds. With
    ``--processor-time``, for a machine that others use too: images per second of processor time.
accuracy
    Every head on the vectors of each, with the same settings; how often it answers as by those of the plan in
    fp32; and by how much vectors change.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _classifiers import HEADS, head_arguments
from _sides import SIZE, Side, exported_side, lively_rn50, machine, our_side, rate

from clipretrieval import OnnxEncoder, RetrievalClassifier, StagedEncoder
from clipretrieval.demo import demo_model
from clipretrieval.encoding.onnx.planning import RUNTIMES
from clipretrieval.images import scan_folder


def main() -> None:
    """Run what was asked for and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="{speed,accuracy}")
    for measure in (speed, accuracy):
        command = commands.add_parser(measure.__name__)
        command.set_defaults(measure=measure)
        command.add_argument("--json", type=Path, help="also write the figures there")
        command.add_argument("--stage", default="mid", help="where the encoder stops (default mid)")
    commands.choices["speed"].add_argument("--rounds", type=int, default=7)
    commands.choices["speed"].add_argument("--images", type=int, default=64, help="a side and round")
    commands.choices["speed"].add_argument("--precision", default="auto", help="of the plan")
    commands.choices["speed"].add_argument("--processor-time", action="store_true")
    commands.choices["accuracy"].add_argument("--model", default=demo_model())
    commands.choices["accuracy"].add_argument("--train", required=True, help="folder with a folder a class")
    commands.choices["accuracy"].add_argument("--test", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = {"machine": machine(), **arguments.measure(arguments, Path(name))}
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Let all sides take turns."""
    _, weights = lively_rn50(folder)
    shape = (arguments.images, SIZE, SIZE, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    stage = arguments.stage
    plan = StagedEncoder("RN50", weights, stage, precision=arguments.precision, device="cpu")
    sides: dict[str, Side] = {f"plan ({plan.plan.precision})": our_side(plan, images, (stage,))}
    for name, encoder in _exported(plan, folder, images[:64]).items():
        sides[name] = exported_side(encoder, images)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):
        for name, side in sides.items():
            found = rate(side, arguments.images, clock)
            if number:
                rates[name].append(found)
    first = next(iter(rates))
    return {
        "images_per_second": {
            name: {"median": statistics.median(each), "min": min(each), "max": max(each)}
            for name, each in rates.items()
        },
        f"times as fast as {first}": {
            name: statistics.median(a / b for a, b in zip(each, rates[first], strict=True))
            for name, each in rates.items()
        },
    }


def _exported(encoder: StagedEncoder, folder: Path, calibration: Any) -> dict[str, OnnxEncoder]:
    """Export an encoder in both ways, and open each file by both runtimes, OpenVINO in each precision."""
    plain = encoder.export(folder / "fp32.onnx")
    quantized = encoder.export(folder / "int8.onnx", int8=calibration)
    found = [
        OnnxEncoder(plain, runtime="openvino"),
        *(OnnxEncoder(plain, runtime=runtime, precision="fp32") for runtime in RUNTIMES),
        *(OnnxEncoder(quantized, runtime=runtime) for runtime in RUNTIMES),
    ]
    return {f"{each.runtime} {each.plan.precision}": each for each in found}


def accuracy(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ask every head by the vectors of the plans and by those of what was exported."""
    encoder = StagedEncoder(arguments.model, stage=arguments.stage, device="cpu", precision="fp32")
    train, test = scan_folder(arguments.train), scan_folder(arguments.test)
    own = StagedEncoder(arguments.model, stage=arguments.stage, device="cpu")
    by: dict[str, Any] = {"plan fp32": encoder, f"plan {own.plan.precision}": own}
    by |= _exported(encoder, folder, train.paths)
    vectors = {name: (each.encode(train.paths), each.encode(test.paths)) for name, each in by.items()}
    labels, truth = np.array(train.labels), np.array(test.labels)
    table: dict[str, Any] = {}
    for head in HEADS:
        settings = head_arguments(head, vectors["plan fp32"][0], labels)
        answers = {
            name: RetrievalClassifier(**settings).fit(stored, labels).predict(asked)
            for name, (stored, asked) in vectors.items()
        }
        table[head] = {
            name: {
                "percent correct": 100 * float((each == truth).mean()),
                "same answer": 100 * float((each == answers["plan fp32"]).mean()),
            }
            for name, each in answers.items()
        }
        print(head, table[head], flush=True)
    expected = vectors["plan fp32"][1]
    lengths = np.linalg.norm(expected, axis=1)
    return {
        "heads": table,
        "change of the vectors, percent of their length": {
            name: 100 * float((np.linalg.norm(asked - expected, axis=1) / lengths).mean())
            for name, (_, asked) in vectors.items()
        },
    }


if __name__ == "__main__":
    main()
