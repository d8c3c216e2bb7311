"""Decide about int8: an exported encoder, quantized by ONNX Runtime, beside the plan of this machine.

    python benchmarks/int8.py speed --json s.json
    python benchmarks/int8.py accuracy --model local-dir:MODEL --train TRAIN --test TEST --json a.json

Convolutions take 8-bit weights (one scale a channel) and activations (one scale a tensor), calibrated on
images of the training set. OpenVINO runs the same quantized file. Needs
``pip install "clipretrieval[bench]"``.

speed
    RN50 at 224×224 with random weights, stage mid: all sides take turns, medians over the rounds.
accuracy
    Every head on the vectors of the plan and on those in int8, and how often the nearest stored image has the
    same label by both.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from _classifiers import HEADS, head_arguments
from _sides import SIZE, Side, lively_rn50, machine, openvino_file_side, our_side, rate
from onnxruntime import quantization

from clipretrieval import OnnxEncoder, RetrievalClassifier, StagedEncoder
from clipretrieval.demo import demo_model
from clipretrieval.encoding.onnx.onnx_file import INPUT
from clipretrieval.encoding.onnx.onnx_graph import OnnxGraph
from clipretrieval.images import iter_images, scan_folder

CALIBRATED_ON = 512
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
    commands.choices["speed"].add_argument("--images", type=int, default=128, help="a side and round")
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
    make = lambda precision: StagedEncoder(  # noqa: E731
        "RN50", weights, arguments.stage, precision=precision, device="cpu"
    )
    plan, plain = make("auto"), make("fp32")
    exported = OnnxEncoder(plain.export(folder / "fp32.onnx"))
    path = quantize(exported.path, folder / "int8.onnx", images[:64])
    precision = plan.plan.precision
    sides: dict[str, Side] = {
        f"plan ({plan.plan.precision})": our_side(plan, images, (arguments.stage,)),
        "plan (fp32)": our_side(plain, images, (arguments.stage,)),
        "ONNX Runtime fp32": _encoding(exported, images),
        f"OpenVINO {precision}": openvino_file_side(exported.path, images, TOGETHER, precision),
        "ONNX Runtime int8": _encoding(running(exported, path), images),
        "OpenVINO int8": openvino_file_side(path, images, TOGETHER),
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
    exported = OnnxEncoder(encoder.export(folder / "fp32.onnx"))
    train, test = scan_folder(arguments.train), scan_folder(arguments.test)
    some = np.random.default_rng(0).permutation(len(train.paths))[:CALIBRATED_ON]
    images = [each.image for each in iter_images([train.paths[place] for place in some])]
    squares = encoder._prepare.batch(images, pixel=False, clip=True)["clip"]
    path = quantize(exported.path, folder / "int8.onnx", squares)
    by = {"plan": encoder, "int8": running(exported, path)}
    vectors = {name: (each.encode(train.paths), each.encode(test.paths)) for name, each in by.items()}
    labels, truth = np.array(train.labels), np.array(test.labels)
    table: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for head in HEADS:
        row = {}
        for name, (stored, asked) in vectors.items():
            made = RetrievalClassifier(**head_arguments(head, stored, labels)).fit(stored, labels)
            answers[name] = made.predict(asked)
            row[name] = 100 * float((answers[name] == truth).mean())
        row["same answer"] = 100 * float((answers["plan"] == answers["int8"]).mean())
        table[head] = row
        print(head, row, flush=True)
    changed = np.linalg.norm(vectors["int8"][1] - vectors["plan"][1], axis=1)
    return {
        "plan": encoder.plan.to_dict(),
        "percent correct": table,
        "change of the vectors, percent of their length": 100
        * float((changed / np.linalg.norm(vectors["plan"][1], axis=1)).mean()),
    }


def quantize(source: Path, target: Path, squares: Any) -> Path:
    """Write an encoder's file with its convolutions in int8."""

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter(np.array_split(squares, max(1, len(squares) // TOGETHER)))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    quantization.quantize_static(
        str(source),
        str(target),
        Images(),
        op_types_to_quantize=["Conv", "Add", "Relu", "AveragePool", "MaxPool"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return target


def running(encoder: OnnxEncoder, path: Path) -> OnnxEncoder:
    """Return an exported encoder that runs another graph: a quantized file is not sealed as ours are."""
    found = copy.copy(encoder)
    found._graph = OnnxGraph(path.read_bytes, encoder.plan.threads)
    return found


def _encoding(encoder: OnnxEncoder, images: Any) -> Side:
    return lambda count: len(encoder.encode(images[:count]))


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(3)
    main()
