"""How fast the encoder runs: beside open_clip, ONNX Runtime and OpenVINO, and under the machine's roofline.

    python benchmarks/encode.py [--quick] --json b.json

RN50 at 224×224 with random weights, or another ``--model``. All sides take turns in one process, each for
about the same time; figures are medians over the rounds, with the lowest and the highest. The peers and our
sides start from bytes, with normalising in their graphs; open_clip is given prepared float tensors. The peers
need ``pip install "clipretrieval[bench]"``; without them their rows say so. ``--quick`` measures ``mid`` and
its peers alone, in under four minutes.

After every round the figures of all rounds are written to ``--json``, and the tables beside it; a run that
is cut short (Ctrl-C, SIGTERM) prints the tables of what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from _files import measure_files
from _findings import Findings, markdown_table
from _sides import (
    DEEP,
    Side,
    count_multiply_adds,
    exported_side,
    largest_differences,
    lively_resnet,
    machine,
    onnxruntime_side,
    open_clip_side,
    openvino_graph,
    openvino_side,
    our_side,
    prepared_inputs,
    rate,
    roofline_side,
)

from clipretrieval import InvalidInputError, OnnxEncoder, StagedEncoder

ALL = ("pixel", *DEEP)
OPEN_CLIPS = ("open_clip, batch 32", "open_clip, best batch")
PEERS = ("ONNX Runtime", "OpenVINO")
EXPORTED = "exported, by OpenVINO"
COUNTS = "multiply-adds a picture, counted where none is saved, in 10⁹"
TRIED = max(16, 4 * torch.get_num_threads())
"""Images of a trial, some for every core; a turn has a multiple of it."""


def main() -> None:
    """Run the benchmark and print its tables."""
    arguments = _arguments()
    settings = {
        "model": arguments.model,
        "rounds": arguments.rounds,
        "seconds a side and round": arguments.seconds,
        **machine(),
    }
    with (
        Findings(arguments.json, render, versions=_versions(), **settings) as found,
        tempfile.TemporaryDirectory() as folder,
    ):
        run(Path(folder), arguments, found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="mid and its peers alone, in under four minutes")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--seconds", type=float, help="time of a side in a round (default 3; quick: 2)")
    parser.add_argument("--images", type=int, default=256, help="different pictures (default 256)")
    parser.add_argument("--files", type=int, default=2000, help="JPEG files of 500×375 (default 2000)")
    parser.add_argument("--precision", default="auto", help="to measure beside fp32 (default: the plan's)")
    parser.add_argument("--no-peers", action="store_true", help="leave ONNX Runtime and OpenVINO out")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled encoder out")
    parser.add_argument(
        "--products",
        type=int,
        nargs="+",
        default=(512, 1024, 2048, 4096),
        help="sides of the square matrices whose products are the roofline (default 512 1024 2048 4096)",
    )
    parser.add_argument("--model", default="RN50", help="RN50 (default), RN101, …, or local-dir:FOLDER")
    parser.add_argument("--device", default="cpu", help="where all sides run: cpu (default), cuda, mps")
    parser.add_argument("--json", type=Path, help="write the figures there, and the tables beside it (.md)")
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or (2.0 if arguments.quick else 3.0)
    return arguments


def _versions() -> dict[str, str]:
    found = {}
    for name in ("numpy", "open_clip_torch", "onnxruntime", "openvino"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def run(folder: Path, arguments: argparse.Namespace, found: Findings) -> None:
    """Measure everything, side by side."""
    model, device, quick = arguments.model, arguments.device, arguments.quick
    visual, weights = lively_resnet(model, folder)
    make = functools.partial(StagedEncoder, model, weights, device=device)
    size = make().image_size
    pictures = np.random.default_rng(0).integers(0, 256, (arguments.images, size, size, 3), dtype=np.uint8)
    plan = make(precision=arguments.precision).plan
    found.add(plan=str(plan), size=size)
    precisions = list(dict.fromkeys(("fp32", plan.precision)))
    moved = copy.deepcopy(visual).to(device)
    differences = largest_differences(moved, make(precision="fp32"), pictures[:TRIED], device)
    found.add(**{"largest difference of fp32 from open_clip's, by the vector's length": differences})

    sides = _open_clip_sides(moved, prepared_inputs(pictures).to(device), quick)
    missing: dict[str, str] = {}
    if device == "cpu":
        missing["CUDA"] = "pass --device cuda" if torch.cuda.is_available() else "no CUDA device here"
    if device == "cpu" and not arguments.no_peers:
        for name, maker in _peer_makers(visual, pictures, folder, precisions).items():
            try:
                sides[name] = _pick_batch(name, maker, (4, 8) if quick else (4, 8, 16))
            except ImportError as error:
                missing[name] = f'{error}; pip install "clipretrieval[bench]"'
        try:
            sides |= _exported_sides(make(stage="mid"), folder, pictures, precisions)
        except ImportError as error:
            missing[EXPORTED] = str(error)
    else:
        missing["ONNX Runtime, OpenVINO"] = "on the CPU alone, without --no-peers"
    found.add(**{"not run": missing})
    for precision in precisions:
        sides |= _our_sides(functools.partial(make, precision=precision), pictures, quick)
    rooflines: dict[str, Callable[[], float]] = {}
    if not quick:
        best = functools.partial(make, precision=plan.precision)
        sides[f"all four stages {plan.precision}"] = our_side(best(), pictures, ALL)
        if not arguments.no_compile:
            sides |= _compiled_sides(best, pictures, found)
        for precision in precisions:
            rooflines[f"roofline {precision}"] = roofline_side(
                precision, device, arguments.products, arguments.seconds
            )
        found.add(
            **{COUNTS: {name: count / 1e9 for name, count in count_multiply_adds(visual, model).items()}}
        )
    _measure(sides, rooflines, arguments, found)
    if not quick:
        found.add(**measure_files(folder, best(stage="mid"), arguments.files, arguments.rounds))


def _open_clip_sides(visual: Any, inputs: torch.Tensor, quick: bool) -> dict[str, Side]:
    make = functools.partial(open_clip_side, visual, inputs)
    batches = (2, 4, 8) if quick else (1, 2, 4, 8, 16)
    best = {OPEN_CLIPS[1]: _pick_batch(OPEN_CLIPS[1], make, batches)}
    return best if quick else {OPEN_CLIPS[0]: make(32)} | best


def _pick_batch(name: str, make: Callable[[int], Side], batches: Iterable[int]) -> Side:
    """Return a side with the batch at which it is fastest."""
    trials = {}
    for batch in batches:
        side = make(batch)
        side(1)  # a batch warms up
        trials[batch] = (rate(side, TRIED), side)
    best = max(trials, key=lambda batch: trials[batch][0])
    print(f"{name}: best batch {best}", file=sys.stderr)
    return trials[best][1]


def _peer_makers(
    visual: Any, pictures: Any, folder: Path, precisions: Iterable[str]
) -> dict[str, Callable[[int], Side]]:
    """Return what makes each peer with a batch; ONNX Runtime has fp32 alone on the CPU."""
    graph = functools.cache(lambda: openvino_graph(visual))

    def by_openvino(precision: str, batch: int) -> Side:
        return openvino_side(graph(), pictures, batch, precision)

    makers: dict[str, Callable[[int], Side]] = {
        "ONNX Runtime, mid fp32": lambda batch: onnxruntime_side(visual, pictures, batch, folder)
    }
    for precision in precisions:
        makers[f"OpenVINO, mid {precision}"] = functools.partial(by_openvino, precision)
    return makers


def _exported_sides(
    encoder: StagedEncoder, folder: Path, pictures: Any, precisions: Iterable[str]
) -> dict[str, Side]:
    """Export the encoder, and have OpenVINO run its file where it has the precision."""
    path, sides = encoder.export(folder / "mid.onnx"), {}
    for precision in precisions:
        with contextlib.suppress(InvalidInputError):
            opened = OnnxEncoder(path, runtime="openvino", precision=precision)
            sides[f"{EXPORTED}, mid {precision}"] = exported_side(opened, pictures)
    return sides


def _our_sides(make: Callable[..., StagedEncoder], pictures: Any, quick: bool) -> dict[str, Side]:
    """Build each stage, and each with all products where the plan saves some; quickly, only the first."""
    encoder = make()
    plan, stages = encoder.plan, DEEP[:1] if quick else DEEP
    sides = {f"{stage} {plan.precision}": our_side(encoder, pictures, (stage,)) for stage in stages}
    if plan.winograd and not quick:
        with patch("clipretrieval.encoding.engine.winograd.is_available", return_value=False):
            direct = make()
        for stage in stages:
            sides[f"{stage} {plan.precision}, all products"] = our_side(direct, pictures, (stage,))
    return sides


def _compiled_sides(make: Callable[..., StagedEncoder], pictures: Any, found: Findings) -> dict[str, Side]:
    sides: dict[str, Side] = {}
    for stage in DEEP:
        encoder = make(stage=stage, compile=True)
        started = time.perf_counter()
        encoder.encode(pictures[:1])
        found.add(**{f"compiling {stage}, s": time.perf_counter() - started})
        sides[f"{stage} {encoder.plan.precision}, compiled"] = our_side(encoder, pictures, (stage,))
    return sides


def _measure(
    sides: dict[str, Side],
    rooflines: dict[str, Callable[[], float]],
    arguments: argparse.Namespace,
    found: Findings,
) -> None:
    """Let all sides take turns, each with as many images as it encodes in the time, repeated if few."""
    counts = {}
    for name, side in sides.items():
        side(1)
        wanted = rate(side, TRIED) * arguments.seconds
        count = min(arguments.images, TRIED * max(1, round(wanted / TRIED)))
        counts[name] = count, max(1, round(wanted / count))
    for number in range(1, arguments.rounds + 1):
        rates = {name: rate(side, *counts[name]) for name, side in sides.items()}
        rates |= {name: roofline() for name, roofline in rooflines.items()}
        found.add(round=number, **rates)


def render(rows: list[dict[str, Any]]) -> str:
    """Write the rounds' figures as tables, and all others as lines."""
    rounds = [row for row in rows if "round" in row]
    others = {name: value for row in rows if "round" not in row for name, value in row.items()}
    parts = [f"{len(rounds)} rounds", ""]
    if rounds:
        rates = {name: [each[name] for each in rounds] for name in rounds[0] if name != "round"}
        parts += [_spreads("images/s; roofline: GFLOP/s", rates, 1), ""]
        parts += [_spreads("ratios, round by round", _ratios(rates, others.get(COUNTS, {})), 2), ""]
    for name, value in others.items():
        shown = value.items() if isinstance(value, dict) else [("", value)]
        parts.append(f"- {name}: " + "; ".join(f"{key} {_short(each)}".strip() for key, each in shown))
    return "\n".join(parts)


def _spreads(title: str, table: dict[str, list[float]], digits: int) -> str:
    rows = [
        [name, *(f"{figure(values):.{digits}f}" for figure in (statistics.median, min, max))]
        for name, values in table.items()
    ]
    return markdown_table([title, "median", "min", "max"], rows)


def _ratios(rates: dict[str, list[float]], multiply_adds: dict[str, float]) -> dict[str, list[float]]:
    """Compare round by round, so that a drift of the machine cancels.

    Each of our sides is compared with open_clip, which is in fp32, and with the peers and the roofline of its
    own precision.
    """
    table: dict[str, list[float]] = {}
    for name, ours in rates.items():
        stage, precision = name.split()[0], name.split()[-1]
        if stage not in DEEP or "," in name:  # a variant is what others are compared with
            continue
        peers = {peer: rates[side] for peer in PEERS if (side := f"{peer}, {name}") in rates}
        others = {side: rates[side] for side in OPEN_CLIPS if side in rates} | peers
        if len(peers) > 1:
            others["the better of both"] = [max(both) for both in zip(*peers.values(), strict=True)]
        if (side := f"{EXPORTED}, {name}") in rates:
            others[EXPORTED] = rates[side]
        for other in ("all products", "compiled"):
            if (side := f"{name}, {other}") in rates:
                others[other] = rates[side]
        together = f"all four stages {precision}"
        if stage == "final" and together in rates:
            others["all four stages"] = rates[together]
        for other, theirs in others.items():
            table[f"{name} / {other}"] = [a / b for a, b in zip(ours, theirs, strict=True)]
        if roofline := rates.get(f"roofline {precision}"):
            flops = 2 * multiply_adds[stage]
            table[f"{name}, share of roofline"] = [a * flops / b for a, b in zip(ours, roofline, strict=True)]
    return table


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
