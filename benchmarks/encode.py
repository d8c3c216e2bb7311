"""How fast the encoder runs: beside open_clip, ONNX Runtime and OpenVINO, and under the machine's roofline.

    python benchmarks/encode.py --json b.json

RN50 at 224×224 with random weights. All sides take turns in one process; figures are medians over the
rounds, with the lowest and the highest. The peers and our sides start from bytes, with normalising in
their graphs; open_clip is given prepared float tensors. The peers need
``pip install "clipretrieval[bench]"``; without them their rows say so.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from _files import measure_files
from _sides import (
    DEEP,
    SIZE,
    Side,
    count_multiply_adds,
    lively_rn50,
    machine,
    onnxruntime_side,
    open_clip_side,
    openvino_side,
    our_side,
    prepared_inputs,
    rate,
    roofline_side,
)

from clipretrieval import StagedEncoder

ALL = ("pixel", *DEEP)


def main() -> None:
    """Run the benchmark and print its tables."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name), arguments)
    print(render(found))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--images", type=int, default=256, help="pictures a side and round (default 256)")
    parser.add_argument("--files", type=int, default=2000, help="JPEG files of 500×375 (default 2000)")
    parser.add_argument("--no-peers", action="store_true", help="leave ONNX Runtime and OpenVINO out")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled encoder out")
    parser.add_argument(
        "--products",
        type=int,
        nargs="+",
        default=(512, 1024, 2048, 4096),
        help="sides of the square matrices whose products are the roofline (default 512 1024 2048 4096)",
    )
    parser.add_argument("--device", default="cpu", help="where all sides run: cpu (default), cuda, mps")
    parser.add_argument("--json", help="also write the figures there")
    return parser.parse_args()


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, side by side."""
    visual, weights = lively_rn50(folder)
    pictures = np.random.default_rng(0).integers(0, 256, (arguments.images, SIZE, SIZE, 3), dtype=np.uint8)
    device = arguments.device
    make = functools.partial(StagedEncoder, "RN50", weights, device=device)
    plan = make().plan
    missing = _not_run(device)
    sides = _open_clip_sides(copy.deepcopy(visual).to(device), prepared_inputs(pictures[:32]).to(device))
    if device == "cpu" and not arguments.no_peers:
        sides |= _peer_sides(visual, pictures, folder, missing)
    precisions = ["fp32"] + ([plan.precision] if plan.precision != "fp32" else [])
    for precision in precisions:
        some = pictures[:64] if precision == "fp32" else pictures
        encoder = make(precision=precision)
        sides |= {f"{stage} {precision}": our_side(encoder, some, (stage,)) for stage in DEEP}
        if encoder.plan.winograd:
            with patch("clipretrieval.encoding.engine.winograd.is_available", return_value=False):
                direct = make(precision=precision)
            sides |= {
                f"{stage} {precision}, all products": our_side(direct, some, (stage,)) for stage in DEEP
            }
    sides["all four stages"] = our_side(make(), pictures, ALL)
    compile_s: dict[str, float] = {}
    if not arguments.no_compile:
        sides |= _compiled_sides(make, pictures, plan.precision, compile_s)
    rooflines = {
        f"roofline {precision}": roofline_side(precision, device, arguments.products)
        for precision in precisions
    }
    rates = _measure(sides, rooflines, arguments.rounds)
    counts = count_multiply_adds(visual)
    return {
        "machine": machine(),
        "plan": plan.to_dict(),
        "rounds": arguments.rounds,
        "images": arguments.images,
        "multiply_adds": counts,
        "images_per_second": {name: _spread(values) for name, values in rates.items()},
        "compile_s": compile_s,
        "ratios": _ratios(rates, counts, plan.precision),
        "files": measure_files(folder, make(stage="mid"), arguments.files, arguments.rounds),
        "not_run": missing,
    }


def _not_run(device: str) -> dict[str, str]:
    if device != "cpu":
        return {"ONNX Runtime, OpenVINO": "they are compared on the CPU alone"}
    return {"cuda": "pass --device cuda" if torch.cuda.is_available() else "no CUDA device here"}


def _open_clip_sides(visual: Any, inputs: torch.Tensor) -> dict[str, Side]:
    trials = {batch: rate(open_clip_side(visual, inputs[:16], batch)) for batch in (1, 2, 4, 8, 16)}
    best = max(trials, key=lambda batch: trials[batch])
    print(f"open_clip's best batch: {best}", file=sys.stderr)
    return {
        "open_clip, batch 32": open_clip_side(visual, inputs, 32),
        "open_clip, best batch": open_clip_side(visual, inputs, best),
    }


def _peer_sides(visual: Any, pictures: Any, folder: Path, missing: dict[str, str]) -> dict[str, Side]:
    """Build each peer at its better batch of 4, 8 and 16."""
    makers: dict[str, Callable[[int], Side]] = {
        "ONNX Runtime fp32, mid": lambda batch: onnxruntime_side(visual, pictures[:64], batch, folder),
        "OpenVINO fp32, mid": lambda batch: openvino_side(visual, pictures[:64], batch, "f32"),
        "OpenVINO bf16, mid": lambda batch: openvino_side(visual, pictures, batch, "bf16"),
    }
    sides: dict[str, Side] = {}
    for name, make in makers.items():
        try:
            built = {batch: make(batch) for batch in (4, 8, 16) if batch <= len(pictures)}
        except ImportError as error:
            missing[name] = f'{error}; pip install "clipretrieval[bench]"'
            continue
        trials = {batch: max(rate(side) for _ in range(2)) for batch, side in built.items()}
        best = max(trials, key=lambda batch: trials[batch])
        print(f"{name}: best batch {best}", file=sys.stderr)
        sides[name] = built[best]
    return sides


def _compiled_sides(
    make: Callable[..., StagedEncoder], pictures: Any, precision: str, compile_s: dict[str, float]
) -> dict[str, Side]:
    sides: dict[str, Side] = {}
    for stage in DEEP:
        encoder = make(stage=stage, compile=True)
        started = time.perf_counter()
        encoder.encode(pictures[:1])
        compile_s[stage] = time.perf_counter() - started
        print(f"compiled {stage} in {compile_s[stage]:.0f} s", file=sys.stderr)
        sides[f"{stage} {precision} compiled"] = our_side(encoder, pictures, (stage,))
    return sides


def _measure(
    sides: dict[str, Side], rooflines: dict[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Let all sides take turns; the first round warms up and does not count."""
    rates: dict[str, list[float]] = {name: [] for name in (*sides, *rooflines)}
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr)
        for name, side in sides.items():
            found = rate(side)
            if number:
                rates[name].append(found)
        for name, roofline in rooflines.items():
            flops = roofline()
            if number:
                rates[name].append(flops)
    return rates


def _ratios(
    rates: dict[str, list[float]], counts: dict[str, float], precision: str
) -> dict[str, dict[str, float]]:
    """Compare round by round, so that a drift of the machine cancels; medians of the ratios."""
    peers = (
        "open_clip, batch 32",
        "open_clip, best batch",
        "ONNX Runtime fp32, mid",
        "OpenVINO fp32, mid",
        "OpenVINO bf16, mid",
    )
    table: dict[str, dict[str, float]] = {}
    for name, values in rates.items():
        stage = name.split()[0]
        if name in peers or name.startswith("roofline") or stage == "all":
            continue
        row = {
            peer: statistics.median(a / b for a, b in zip(values, rates[peer], strict=True))
            for peer in peers
            if peer in rates and ("mid" not in peer or stage == "mid")
        }
        used = "fp32" if " fp32" in name else precision
        flops = 2 * counts[stage]
        row["share of roofline"] = statistics.median(
            rate * flops / roof for rate, roof in zip(values, rates[f"roofline {used}"], strict=True)
        )
        table[name] = row
    final, together = rates[f"final {precision}"], rates["all four stages"]
    table["all four stages"] = {
        "time / final alone": statistics.median(a / b for a, b in zip(final, together, strict=True))
    }
    return table


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def render(found: dict[str, Any]) -> str:
    """Write the figures as plain tables."""
    machine = found["machine"]
    bf16 = ", ".join(machine["bf16 instructions"]) or "no bf16 instructions"
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {bf16}; torch {machine['torch']}",
        f"plan {found['plan']}",
        f"RN50 at {SIZE}×{SIZE}, medians of {found['rounds']} rounds, {found['images']} images a side",
        "",
        f"{'side':<28}{'images/s':>10}{'min':>9}{'max':>9}",
    ]
    for name, spread in found["images_per_second"].items():
        if name.startswith("roofline"):
            lines.append(
                f"{name + ', GFLOP/s':<28}{spread['median'] / 1e9:>10.0f}{spread['min'] / 1e9:>9.0f}"
                f"{spread['max'] / 1e9:>9.0f}"
            )
        else:
            lines.append(f"{name:<28}{spread['median']:>10.1f}{spread['min']:>9.1f}{spread['max']:>9.1f}")
    lines += ["", "ratios, round by round"]
    for name, row in found["ratios"].items():
        lines.append(f"  {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()))
    counts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in found["multiply_adds"].items())
    lines += ["", f"multiply-adds a picture, counted where none is saved, in 10⁹: {counts}"]
    if found["compile_s"]:
        lines.append("compiling, s: " + ", ".join(f"{k} {v:.0f}" for k, v in found["compile_s"].items()))
    lines += ["", *(f"{key}: {value}" for key, value in found["files"].items())]
    lines += [f"not run: {name}: {reason}" for name, reason in found["not_run"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
