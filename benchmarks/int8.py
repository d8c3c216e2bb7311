"""Whether int8 pays: an encoder exported in 8 bits, beside the plan of this machine and beside OpenVINO.

    python benchmarks/int8.py speed --json s.json
    python benchmarks/int8.py accuracy --model local-dir:MODEL --train TRAIN --test TEST --json a.json

OpenVINO runs the files that were exported. Needs ``pip install "clipretrieval[bench]"``.

speed
    RN50 at 224×224 with random weights: all sides take turns, medians over the rounds.
accuracy
    Every head on the vectors of the plan and on those in int8, with the same settings; how often the nearest
    stored image has the same label by both; and by how much vectors change.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _classifiers import HEADS, head_arguments
from _sides import SIZE, Side, lively_rn50, machine, openvino_file_side, our_side, rate

from clipretrieval import OnnxEncoder, RetrievalClassifier, StagedEncoder
from clipretrieval.demo import demo_model
from clipretrieval.images import scan_folder

TOGETHER = 8


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
    exported = OnnxEncoder(plan.export(folder / "fp32.onnx"))
    quantized = OnnxEncoder(plan.export(folder / "int8.onnx", int8=images[:64]))
    precision = plan.plan.precision
    sides: dict[str, Side] = {
        f"plan ({precision})": our_side(plan, images, (stage,)),
        "exported": lambda count: len(exported.encode(images[:count])),
        "exported in int8": lambda count: len(quantized.encode(images[:count])),
        f"OpenVINO {precision}": openvino_file_side(exported.path, images, TOGETHER, precision),
        "OpenVINO int8": openvino_file_side(quantized.path, images, TOGETHER),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):
        for name, side in sides.items():
            found = rate(side, arguments.images)
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


def accuracy(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ask every head by the vectors of the plan and by those in int8."""
    encoder = StagedEncoder(arguments.model, stage=arguments.stage, device="cpu")
    train, test = scan_folder(arguments.train), scan_folder(arguments.test)
    quantized = OnnxEncoder(encoder.export(folder / "int8.onnx", int8=train.paths))
    by = {"plan": encoder, "int8": quantized}
    vectors = {name: (each.encode(train.paths), each.encode(test.paths)) for name, each in by.items()}
    labels, truth = np.array(train.labels), np.array(test.labels)
    table: dict[str, Any] = {}
    for head in HEADS:
        settings = head_arguments(head, vectors["plan"][0], labels)
        answers = {
            name: RetrievalClassifier(**settings).fit(stored, labels).predict(asked)
            for name, (stored, asked) in vectors.items()
        }
        table[head] = {name: 100 * float((each == truth).mean()) for name, each in answers.items()}
        table[head]["same answer"] = 100 * float((answers["plan"] == answers["int8"]).mean())
        print(head, table[head], flush=True)
    changed = np.linalg.norm(vectors["int8"][1] - vectors["plan"][1], axis=1)
    return {
        "plan": encoder.plan.to_dict(),
        "percent correct": table,
        "change of the vectors, percent of their length": 100
        * float((changed / np.linalg.norm(vectors["plan"][1], axis=1)).mean()),
    }


if __name__ == "__main__":
    main()
