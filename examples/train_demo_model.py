"""Train the small CLIP that ships in ``clipretrieval/demo/model``, from nothing, on pictures drawn here.

Run as ``python examples/train_demo_model.py OUT``; it takes a quarter of an hour of one core, and about 2 GB
of memory. The folder OUT is in open_clip's ``local-dir`` form. The same seed gives the same files on one
machine.

The model sees eight of the ten kinds (`TRAINED_KINDS`), with captions that name the kind and, at times, its
colour, size, texture and background. The loss is CLIP's but for pictures with equal captions, of which every
batch has many: they are right answers for each other, as in UniCL (Yang et al., CVPR 2022).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from clipretrieval.demo import FIRST_TRAINING_SEED, TRAINED_KINDS, render, sample_scenes

SHIFT = 6
"""The most that a picture is moved while training, in pixels each way."""

KIND_ALONE = 0.8
"""The share of captions that are made to name the kind alone."""

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {
        "size": 64,
        "mean": [0.48, 0.44, 0.43],
        "std": [0.26, 0.24, 0.24],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "mode": "RGB",
    },
}


def draw_training_set(per_kind: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pictures of the kinds that are trained on.

    Returns
    -------
    pictures : tensor of uint8, shape (n, 3, 64, 64)
    captions : tensor of int64, shape (n, 8, 24)
        CLIP's tokens of the eight captions of each, the kind alone first.
    """
    scenes = list(sample_scenes(per_kind, seed, kinds=TRAINED_KINDS))
    pictures = np.stack([np.asarray(render(scene)) for scene in scenes])
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"])
    captions = torch.stack([tokenizer(scene.captions()) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), captions


def contrastive_loss(clip: nn.Module, pictures: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy from pictures to captions and back, equal captions sharing the target."""
    image = functional.normalize(clip.encode_image(pictures), dim=-1)  # type: ignore[operator]
    text = functional.normalize(clip.encode_text(tokens), dim=-1)  # type: ignore[operator]
    scale: Any = clip.logit_scale
    logits = scale.exp().clamp(max=100) * image @ text.T
    same = (tokens[:, None] == tokens[None]).all(dim=-1).float()
    target = same / same.sum(dim=1, keepdim=True)
    forth, back = functional.cross_entropy(logits, target), functional.cross_entropy(logits.T, target)
    return (forth + back) / 2


def vary(batch: torch.Tensor, named_only: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror and shift a batch with values in [0, 1], and give each picture another light.

    Where the caption names the kind alone, red, green and blue change places: colour tells nothing of it.
    """
    batch[named_only] = batch[named_only][:, torch.randperm(3, generator=generator)]
    if torch.rand((), generator=generator) < 0.5:
        batch = batch.flip(3)
    top, left = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    padded = functional.pad(batch, (SHIFT, SHIFT, SHIFT, SHIFT), mode="reflect")
    moved = padded[:, :, top : top + batch.shape[2], left : left + batch.shape[3]]
    return (moved * (0.8 + 0.4 * torch.rand((len(batch), 3, 1, 1), generator=generator))).clamp(0, 1)


def train(clip: nn.Module, pictures: torch.Tensor, captions: torch.Tensor, options: Any) -> None:
    """Train a model in place; it prints a line for each epoch."""
    mean, std = (torch.tensor(CONFIG["preprocess_cfg"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(
        [
            {"params": [tensor for tensor in clip.parameters() if tensor.ndim > 1], "weight_decay": 0.05},
            {"params": [tensor for tensor in clip.parameters() if tensor.ndim <= 1], "weight_decay": 0.0},
        ],
        fused=True,
    )
    batches = len(pictures) // options.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        options.learning_rate,
        total_steps=options.epochs * batches,
        pct_start=0.1,
        cycle_momentum=False,
    )
    began = time.perf_counter()
    clip.train()
    for epoch in range(options.epochs):
        total = 0.0
        order = torch.randperm(len(pictures), generator=generator)
        for rows in order[: batches * options.batch_size].split(options.batch_size):
            # Most captions name the kind alone, or colours, which are seen at a glance, would come first.
            told = torch.randint(0, captions.shape[1], (len(rows),), generator=generator)
            told[torch.rand(len(rows), generator=generator) < KIND_ALONE] = 0
            batch = (vary(pictures[rows].float() / 255, told == 0, generator) - mean) / std
            batch = batch.contiguous(memory_format=torch.channels_last)
            loss = contrastive_loss(clip, batch, captions[rows, told])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        passed = time.perf_counter() - began
        print(f"epoch {epoch + 1}: loss {total / batches:.3f} after {passed:.0f} s", flush=True)
    clip.eval()


def save(clip: nn.Module, captions: torch.Tensor, out: Path) -> None:
    """Write a model in half precision; words that no caption used are zero, which packs to nothing."""
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in clip.state_dict().items()
    }
    known = torch.zeros(len(state["token_embedding.weight"]), 1, dtype=torch.bool)
    known[captions.unique()] = True
    state["token_embedding.weight"] *= known
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / "open_clip_model.safetensors")
    (out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the demo's small CLIP from nothing.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, weights and order (0)")
    parser.add_argument("--per-kind", type=int, default=5000, help="training pictures of each kind (5000)")
    parser.add_argument("--epochs", type=int, default=5, help="times each picture is shown (5)")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures a step (64)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at its highest (0.003)")
    options = parser.parse_args(arguments)
    # One thread adds up in one order: the same seed on the same machine gives the very same model.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    pictures, captions = draw_training_set(options.per_kind, FIRST_TRAINING_SEED + options.seed)
    print(f"{len(pictures)} pictures drawn", flush=True)
    # Channels last makes the convolutions a third faster.
    clip = open_clip.CLIP(**CONFIG["model_cfg"]).to(memory_format=torch.channels_last)
    train(clip, pictures, captions, options)
    save(clip, captions, options.out)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
