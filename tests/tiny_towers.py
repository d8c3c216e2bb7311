"""Small towers of each family with random weights, walks through their modules, and a count of what runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file
from tiny_models import enliven
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

Walk = Mapping[str, torch.Tensor]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": TEXT,
}
SIGLIP = {
    "embed_dim": 96,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit3",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}
CONVNEXT = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "test_convnext",
        "timm_pool": "",
        "timm_proj": "linear",
    },
    "text_cfg": TEXT,
}


@dataclass(frozen=True)
class TinyTower:
    """A tower and what it should give.

    Attributes
    ----------
    make : callable
        Builds the library's own module.
    walk : callable
        Returns what lies behind ``mid``, ``late`` and ``final`` for normalized images.
    block : str
        How `counted_modules` calls its blocks.
    blocks : tuple of int
        How many run up to ``mid``, ``late`` and ``final``.
    prefix : int or None
        Tokens in front of the patches; None of a grid.
    """

    make: Callable[[], nn.Module]
    walk: Callable[[Any, torch.Tensor], Walk]
    block: str
    blocks: tuple[int, int, int]
    prefix: int | None = None


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Draw a module's weights from a seed, and let every part of it do something."""

    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = enliven(make())
            for name, parameter in module.named_parameters():
                if "gamma" in name or name.endswith(("bias", "reg_token", "cls_token")):
                    nn.init.normal_(parameter, std=0.3)
        return module

    return made


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return seeded(lambda: timm.create_model(name, num_classes=0, **options))


def clip_of(config: dict[str, Any]) -> nn.Module:
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    return kind(**{key: value for key, value in config.items() if key != "custom_text"})  # type: ignore[no-any-return]


def walk_clip(visual: Any, x: torch.Tensor) -> Walk:
    x = visual.conv1(x).flatten(2).transpose(1, 2)
    token = visual.class_embedding.expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([token, x], dim=1) + visual.positional_embedding)
    found = {}
    for place, block in enumerate(visual.transformer.resblocks):
        x = block(x)
        if place == 1:
            found["mid"] = x
    found["late"] = visual.ln_post(x)
    return {**found, "final": found["late"][:, 0] @ visual.proj}


def walk_vit(trunk: Any, x: torch.Tensor) -> Walk:
    half = len(trunk.blocks) // 2
    x = trunk.patch_embed(x)
    x = x.flatten(1, 2) if x.ndim == 4 else x
    front = [part.expand(len(x), -1, -1) for part in (trunk.cls_token, trunk.reg_token) if part is not None]
    if trunk.no_embed_class:
        x = torch.cat([*front, x + trunk.pos_embed], dim=1)
    else:
        x = torch.cat([*front, x], dim=1) + trunk.pos_embed
    x = trunk.norm_pre(x)
    mid = x = trunk.blocks[:half](x)
    late = trunk.norm(trunk.blocks[half:](x))
    if trunk.attn_pool is not None:
        pooled = trunk.attn_pool(late if trunk.pool_include_prefix else late[:, trunk.num_prefix_tokens :])
    elif trunk.global_pool == "avg":
        pooled = late[:, trunk.num_prefix_tokens :].mean(dim=1)
    else:
        pooled = late[:, 0]
    return {"mid": mid, "late": late, "final": trunk.fc_norm(pooled)}


def walk_eva(trunk: Any, x: torch.Tensor) -> Walk:
    side = x.shape[-1] // trunk.patch_embed.patch_size[0]
    x = trunk.patch_embed(x)
    x = x.flatten(1, 2) if x.ndim == 4 else x
    front = [part.expand(len(x), -1, -1) for part in (trunk.cls_token, trunk.reg_token) if part is not None]
    x = torch.cat([*front, x], dim=1)
    if trunk.pos_embed is not None:
        x = x + trunk.pos_embed
    x = trunk.norm_pre(x)
    rope = trunk.rope.get_embed(shape=(side, side))
    found, half = {}, len(trunk.blocks) // 2
    for place, block in enumerate(trunk.blocks):
        x = block(x, rope=rope[place] if trunk.rope_mixed else rope)
        if place == half - 1:
            found["mid"] = x
    late = found["late"] = trunk.norm(x)
    patches = late[:, trunk.num_prefix_tokens :]
    return {**found, "final": trunk.fc_norm(late[:, 0] if trunk.global_pool == "token" else patches.mean(1))}


def walk_convnext(visual: Any, x: torch.Tensor) -> Walk:
    """Stages of 1, 2, 4 and 2 blocks, of which the fourth is the first of the third stage."""
    trunk = getattr(visual, "trunk", visual)
    x = trunk.stages[1](trunk.stages[0](trunk.stem(x)))
    mid = trunk.stages[2].blocks[0](trunk.stages[2].downsample(x))
    late = trunk.norm_pre(trunk.stages[3](trunk.stages[2].blocks[1:](mid)))
    pooled = trunk.head(late)
    return {"mid": mid, "late": late, "final": pooled if trunk is visual else visual.head(pooled)}


def walk_resnet(trunk: Any, x: torch.Tensor) -> Walk:
    """Two of four blocks."""
    mid = trunk.layer2(trunk.layer1(trunk.maxpool(trunk.act1(trunk.bn1(trunk.conv1(x))))))
    late = trunk.layer4(trunk.layer3(mid))
    return {"mid": mid, "late": late, "final": late.mean(dim=(2, 3))}


def walk_siglip(visual: Any, x: torch.Tensor) -> Walk:
    return walk_vit(visual.trunk, x)


SMALL_EVA = {"depth": 4, "embed_dim": 48, "num_heads": 3, "img_size": 64}
TOWERS = {
    "open_clip ViT": TinyTower(
        seeded(lambda: clip_of(VIT).visual), walk_clip, "ResidualAttentionBlock", (2, 4, 4), 1
    ),
    "open_clip SigLIP": TinyTower(seeded(lambda: clip_of(SIGLIP).visual), walk_siglip, "Block", (4, 9, 9), 1),
    "open_clip ConvNeXt": TinyTower(
        seeded(lambda: clip_of(CONVNEXT).visual), walk_convnext, "ConvNeXtBlock", (4, 9, 9)
    ),
    "timm ViT": TinyTower(from_timm("test_vit"), walk_vit, "Block", (3, 6, 6), 1),
    "timm DINOv2": TinyTower(
        from_timm(
            "vit_small_patch14_reg4_dinov2", depth=4, embed_dim=48, num_heads=3, img_size=56, init_values=0.5
        ),
        walk_vit,
        "Block",
        (2, 4, 4),
        5,
    ),
    "timm EVA02": TinyTower(
        from_timm("eva02_tiny_patch14_224", **{**SMALL_EVA, "img_size": 56}),
        walk_eva,
        "EvaBlock",
        (2, 4, 4),
        1,
    ),
    "timm DINOv3": TinyTower(
        from_timm("vit_small_patch16_dinov3", **SMALL_EVA), walk_eva, "EvaBlock", (2, 4, 4), 5
    ),
    "timm mixed positions": TinyTower(
        from_timm("vit_small_patch16_rope_mixed_224", **SMALL_EVA), walk_eva, "EvaBlock", (2, 4, 4), 1
    ),
    "timm ConvNeXt": TinyTower(from_timm("test_convnext"), walk_convnext, "ConvNeXtBlock", (4, 9, 9)),
    "timm ResNet": TinyTower(from_timm("test_resnet"), walk_resnet, "Block", (2, 4, 4)),
}


def write_clip(folder: Path, config: dict[str, Any], preprocess: dict[str, Any] | None = None) -> str:
    """Write a small CLIP in open_clip's form and return its ``local-dir:`` name."""
    clip = seeded(lambda: clip_of(config))()
    folder.mkdir(parents=True)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": config, **({"preprocess_cfg": preprocess} if preprocess else {})}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


@contextmanager
def counted_modules() -> Iterator[Counter[str]]:
    """Count how often modules of each class run inside the block, wherever they come from.

    The two kinds of blocks that a ResNet of timm's may have count as one.
    """
    counts: Counter[str] = Counter()
    same = {"BasicBlock": "Block", "Bottleneck": "Block"}

    def count(module: nn.Module, *_: Any) -> None:
        name = type(module).__name__
        counts.update([same.get(name, name)])

    hook = register_module_forward_hook(count)
    try:
        yield counts
    finally:
        hook.remove()
