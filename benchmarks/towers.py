"""Whether every tower gives what its library gives, and how fast it is beside it.

    python benchmarks/towers.py check --json check.json
    python benchmarks/towers.py speed --json speed.json

Random weights of a seed, one model at a time. What the file holds already is not measured again.

check
    ``mid``, ``late`` and ``final`` in float32 beside what hooks see in the library's own module; which blocks
    run; a batch beside its images one by one; how many blocks run when a pass goes on from ``mid``.
speed
    The encoder at ``mid`` and whole beside the library's module as it comes, in batches of 32 and of fewer.
    Sides take turns; times are the processor's, which other programs change less than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _findings import Findings, markdown_table
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from clipretrieval import StagedEncoder

STAGES = ("mid", "late", "final")
TOGETHER = 32
FEWER = (1, 2, 4, 8, 16)


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
    parser.add_argument("measure", choices=("check", "speed"))
    parser.add_argument("--json", type=Path, help="where figures are kept")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--images", type=int, help="2 for check, 32 for speed when left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="of the encoder in speed")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = Findings(given.json, table, torch=torch.__version__, threads=given.threads)
    kept = json.loads(given.json.read_text()).get("rows", []) if given.json and given.json.exists() else []
    for row in kept:
        found.add(**row)
    done = {(row["model"], row.get("precision")) for row in kept}
    for name in given.models:
        asked = None if given.measure == "check" else given.precision
        if (name, asked) not in done:
            count = given.images or (2 if asked is None else TOGETHER)
            found.add(model=name, **(check(name, count) if asked is None else speed(name, count, given)))
    print(found)


def table(rows: list[dict[str, Any]]) -> str:
    """Show all rows."""
    head = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return markdown_table(head, [[cell(row.get(name, "")) for name in head] for row in rows])


def squares(encoder: StagedEncoder, count: int) -> npt.NDArray[np.uint8]:
    """Draw images that need no resizing: smooth ones, as photographs are."""
    rng, side = np.random.default_rng(0), encoder.image_size
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 9, 9)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255)
    return smooth.permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()


def library(encoder: StagedEncoder) -> nn.Module:
    """Return the library's own module with the same weights."""
    return encoder._tower.design.as_it_comes(encoder.seed)


def inputs(encoder: StagedEncoder, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Normalize images as the library does."""
    cfg = encoder.preprocessing
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


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


def check(name: str, count: int) -> dict[str, Any]:
    """Compare a tower with its library."""
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
    return {"as it should be": right, **figures}


def relative(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def speed(name: str, count: int, given: argparse.Namespace) -> dict[str, Any]:
    """Let the encoder and the library take turns."""
    encoder = StagedEncoder(name, None, "mid", precision=given.precision, device="cpu")
    images, module = squares(encoder, count), library(encoder)

    def ours(stage: str) -> Callable[[], object]:
        return lambda: encoder.encode_stages(images, [stage])

    def theirs(batch: int) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                for start in range(0, count, batch):
                    module(inputs(encoder, images[start : start + batch]))

        return run

    sides = {"mid": ours("mid"), "final": ours("final")}
    sides |= {f"library, {batch}": theirs(batch) for batch in (*FEWER, TOGETHER)}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(given.rounds + 1):
        for side, run in sides.items():
            started = time.process_time()
            run()
            if number:  # the first warms up
                taken[side].append((time.process_time() - started) / count)
    ms = {side: 1000 * statistics.median(seconds) for side, seconds in taken.items()}
    best = min((side for side in ms if side.startswith("library")), key=lambda side: ms[side])
    return {
        "precision": given.precision,
        "plan": str(encoder.plan),
        "mid ms": ms["mid"],
        "final ms": ms["final"],
        f"library ms at {TOGETHER}": ms[f"library, {TOGETHER}"],
        "library's best ms": ms[best],
        "its batch": int(best.split()[-1]),
        "mid / final": ms["mid"] / ms["final"],
        "× library at 32": ms[f"library, {TOGETHER}"] / ms["final"],
        "× library's best": ms[best] / ms["final"],
    }


if __name__ == "__main__":
    main()
