"""Whether every tower gives what its library gives, and how fast it is beside it.

    python benchmarks/towers.py check --json check.json
    python benchmarks/towers.py speed --json speed.json
    python benchmarks/towers.py use FOLDER --json use.json

Random weights of a seed, one model at a time. What the file holds already is not measured again.

check
    ``mid``, ``late`` and ``final`` in float32 beside what hooks see in the library's own module; which blocks
    run; a batch beside its images one by one; how many blocks run when a pass goes on from ``mid``.
speed
    The encoder at ``mid`` and whole beside the library's module as it comes, in batches of 32 and in its
    best; in bf16 as well, by autocast and all of it, where ours runs in bf16; and beside OpenVINO and, in
    float32, ONNX Runtime, which have converted that module. All begin with bytes, take turns, and are shown
    with the lowest and the highest of the rounds. Times are the processor's, which other programs change less
    than those of the clock.
use
    A classifier at ``mid`` fitted on three quarters of a folder's images (200 of a class), asked about the
    others, saved, and asked again in another process. Seconds of the processor, and the first process's peak
    memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _findings import Findings, markdown_table
from _tower_sides import FromBytes, Side, library_sides, onnxruntime_sides, openvino_sides
from _tower_use import used
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from clipretrieval import StagedEncoder

STAGES = ("mid", "late", "final")
TOGETHER = 32
FEWER = (4, 8, 16)
ENGINES_TRIED = (1, 4, 16)
TRIED = 16
"""Images of a trial, if a batch has no more."""


@dataclass(frozen=True)
class Model:
    """Where the library's own module has what lies behind `mid` and `late`.

    Attributes
    ----------
    mid, late : str
        Names of its parts.
    block : str
        The class of its blocks, of which `blocks` run up to ``mid`` and in all.
    prefix : int or None
        Tokens in front of the patches; None of a grid.
    """

    mid: str
    late: str
    block: str
    blocks: tuple[int, int]
    prefix: int | None = None


MODELS = {
    **dict.fromkeys(
        ("ViT-B-32", "ViT-B-16"),
        Model("transformer.resblocks.5", "ln_post", "ResidualAttentionBlock", (6, 12), 1),
    ),
    "ViT-B-16-SigLIP": Model("trunk.blocks.5", "trunk.norm", "Block", (6, 12), 0),
    "convnext_base_w": Model("trunk.stages.2.blocks.11", "trunk.stages.3", "ConvNeXtBlock", (18, 36)),
    "timm:vit_small_patch14_dinov2.lvd142m": Model("blocks.5", "norm", "Block", (6, 12), 1),
    "timm:resnet50": Model("layer3.0", "layer4", "Bottleneck", (8, 16)),
    "RN101": Model("layer3", "layer4", "Block", (30, 33)),
    "RN50x4": Model("layer3", "layer4", "Block", (20, 26)),
}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("folder", type=Path, nargs="?", help="of class folders, for use")
    parser.add_argument("--json", type=Path, help="where figures are kept")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--images", type=int, help="2 for check, 32 for speed, 200 of a class for use when left out"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="of the encoder in speed")
    parser.add_argument("--stages", nargs="*", default=["mid", "final"], help="of speed")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.measure == "use" and given.folder is None:
        parser.error("use needs a folder of class folders")
    torch.set_num_threads(given.threads)
    found = Findings(given.json, table, torch=torch.__version__, threads=given.threads)
    kept = json.loads(given.json.read_text()).get("rows", []) if given.json and given.json.exists() else []
    for row in kept:
        found.add(**row)
    asked = {"precision": given.precision} if given.measure == "speed" else {}
    for name in given.models:
        same = [
            row
            for row in found.rows
            if (row["model"], row.get("precision")) == (name, asked.get("precision"))
        ]
        if any(row.get("rounds", given.rounds) >= given.rounds for row in same):
            continue
        for figures in MEASURES[given.measure](name, given):
            found.rows[:] = [row for row in found.rows if row not in same]
            found.add(model=name, **asked, **figures)
            same = found.rows[-1:]
    print(found)


def table(rows: list[dict[str, Any]]) -> str:
    """Show all rows; of speed, a line for each side."""
    lines = [
        {**{name: value for name, value in row.items() if name != "sides"}, "side": side, **figures}
        for row in rows
        for side, figures in row.get("sides", {"": {}}).items()
    ]
    head = list(dict.fromkeys(name for line in lines for name in line if line.get("side") or name != "side"))

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return markdown_table(head, [[cell(line.get(name, "")) for name in head] for line in lines])


def squares(encoder: StagedEncoder, count: int) -> npt.NDArray[np.uint8]:
    """Draw images that need no resizing: smooth ones, as photographs are."""
    rng, side = np.random.default_rng(0), encoder.image_size
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 9, 9)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255)
    return smooth.permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()


def library(encoder: StagedEncoder) -> nn.Module:
    """Return the library's own module with the same weights."""
    return encoder._tower.design.library_module(encoder.seed)


def inputs(encoder: StagedEncoder, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Prepare images as the library does, which cuts a margin off for some models."""
    prepare = encoder._tower.source.transform()
    return torch.stack([prepare(Image.fromarray(image)) for image in images])


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the modules of each class that run."""
    counts: Counter[str] = Counter()
    hook = register_module_forward_hook(lambda module, *_: counts.update([type(module).__name__]))
    try:
        yield counts
    finally:
        hook.remove()


def expected(name: str, encoder: StagedEncoder, images: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return what the library's module has at each stage, pooled by hand."""
    model, module, seen = MODELS[name], library(encoder), dict[str, torch.Tensor]()
    parts = dict(module.named_modules())
    for stage, path in (("mid", model.mid), ("late", model.late)):
        parts[path].register_forward_hook(lambda _, __, made, stage=stage: seen.__setitem__(stage, made))
    with torch.inference_mode():
        found: dict[str, Any] = {"final": module(inputs(encoder, images))}
        for stage, x in seen.items():
            if stage == "late" and hasattr(module, "attnpool"):  # a CLIP ResNet's tokens
                grid = x.flatten(2).transpose(1, 2)
                tokens = torch.cat([grid.mean(dim=1, keepdim=True), grid], dim=1)
                found[stage] = (tokens + module.attnpool.positional_embedding).mean(dim=1)
            elif model.prefix is None:
                found[stage] = x.mean(dim=(2, 3))
            else:
                found[stage] = x[:, model.prefix :].mean(dim=1)
    return {stage: values.numpy() for stage, values in found.items()}


def check(name: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare a tower with its library."""
    count = given.images or 2
    model = MODELS[name]
    encoder = StagedEncoder(name, None, "mid", precision="fp32", device="cpu")
    images = squares(encoder, count)
    wanted = expected(name, encoder, images)
    whole = encoder.encode_stages(images, STAGES)
    with counted() as at_mid:
        encoder.encode(images[:1])
    halfway = encoder.begin(images, "mid")
    with counted() as beyond:
        last = halfway.advance("final", rows=[0])
    alone = [encoder.encode_stages(images[row : row + 1], STAGES) for row in range(count)]
    figures = {f"{stage} error": relative(whole[stage], wanted[stage]) for stage in STAGES} | {
        "one by one": max(
            relative(alone[row][stage][0], whole[stage][row]) for row in range(count) for stage in STAGES
        ),
        "gone on": relative(last.vectors[0], whole["final"][0]),
        "blocks at mid": at_mid[model.block],
        "blocks beyond": beyond[model.block],
    }
    right = all(value < 1e-5 for key, value in figures.items() if not key.startswith("blocks")) and (
        at_mid[model.block],
        beyond[model.block],
    ) == (model.blocks[0], model.blocks[1] - model.blocks[0])
    yield {"as it should be": right, **figures}


def relative(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def speed(name: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Let all sides take turns; yield the figures after every round."""
    count = given.images or TOGETHER
    encoder = StagedEncoder(name, None, "mid", precision=given.precision, device="cpu")
    images, plan = squares(encoder, count), encoder.plan
    module = library(encoder)
    sides: dict[str, Side] = {}
    batches: dict[str, int] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in given.stages:
            sides[stage] = partial(ours, encoder, images, stage)
            network = FromBytes(encoder, module, stage)
            makers = {"library": (partial(library_sides, network, images), (*FEWER, TOGETHER))}
            if plan.precision == "bf16":
                for way, tried in (("autocast", (TOGETHER // 2, TOGETHER)), ("bf16", (*FEWER, TOGETHER))):
                    makers[f"library, {way}"] = partial(library_sides, network, images, way), tried
            else:
                makers["ONNX Runtime"] = (
                    partial(onnxruntime_sides, network, images, Path(folder)),
                    ENGINES_TRIED,
                )
            makers["OpenVINO"] = (partial(openvino_sides, network, images, plan.precision), ENGINES_TRIED)
            for peer, (maker, tried) in makers.items():
                side = f"{stage}, {peer}"
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # of tracing
                        make = maker()
                    sides[side], batches[side] = quickest(
                        side, make, [batch for batch in tried if batch <= count]
                    )
                except Exception as error:  # noqa: BLE001  one engine that cannot is no reason to stop
                    missing[side] = (str(error) or repr(error)).splitlines()[0][:100]
                    continue
                if TOGETHER in tried and batches[side] != TOGETHER <= count:
                    sides[f"{side} at {TOGETHER}"] = make(TOGETHER)
        taken: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(given.rounds + 1):
            for side, run in sides.items():
                seconds = spent(run, count)
                if number:  # the first warms up
                    taken[side].append(1000 * seconds / count)
            if number:
                yield {
                    "plan": str(plan),
                    "rounds": number,
                    "images": count,
                    **figures_of(taken, batches),
                    **({"not run": missing} if missing else {}),
                }


def ours(encoder: StagedEncoder, images: npt.NDArray[np.uint8], stage: str, count: int) -> None:
    """Encode by the public face."""
    encoder.encode_stages(images[:count], [stage])


def quickest(side: str, make: Callable[[int], Side], batches: list[int]) -> tuple[Side, int]:
    """Return what is the fastest in batches of one of some sizes, each tried on few images, and the size."""
    found: dict[int, tuple[float, Side]] = {}
    for batch in batches:
        run, few = make(batch), max(batch, TRIED)
        run(batch)
        found[batch] = spent(run, few) / few, run
        print(f"{side} at {batch}: {1000 * found[batch][0]:.1f} ms", file=sys.stderr, flush=True)
    best = min(found, key=lambda batch: found[batch][0])
    return found[best][1], best


def spent(run: Side, count: int) -> float:
    """Return the processor's seconds."""
    started = time.process_time()
    run(count)
    return time.process_time() - started


def figures_of(taken: dict[str, list[float]], batches: dict[str, int]) -> dict[str, Any]:
    """Return medians and spreads of milliseconds an image, and by how much ours is faster."""
    middle = {side: statistics.median(ms) for side, ms in taken.items()}
    sides = {
        side: {
            "batch": batches.get(side, TOGETHER),
            "ms": middle[side],
            "from": min(ms),
            "to": max(ms),
            "× ours": middle[side] / middle[side.partition(", ")[0]],
        }
        for side, ms in taken.items()
    }
    halves = {"mid / final": middle["mid"] / middle["final"]} if {"mid", "final"} <= set(middle) else {}
    return {**halves, "sides": sides}


def use(name: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Classify a folder's images as a user would."""
    yield used(name, given.folder, given.images, given.threads)


MEASURES = {"check": check, "speed": speed, "use": use}

if __name__ == "__main__":
    main()
