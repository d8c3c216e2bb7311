"""timm's ``VisionTransformer`` (DINOv2, SigLIP, DeiT) and ``Eva`` (EVA02, DINOv3, Perception Encoder)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clipretrieval._util.foreign import is_instance
from clipretrieval.encoding.towers.family import Family, UnitSpec

if TYPE_CHECKING:
    import torch

__all__ = ["TIMM_EVA", "TIMM_TRANSFORMER", "resize_timm", "side_of_timm"]

_STAGES = {
    "block.N": "Output of block N: the tokens in front (class token, registers), if any, and the patches.",
    "mid": "Output of the block with which half of them have run.",
    "late": "The last block's tokens after the final norm, if it comes before the pooling.",
    "final": "The embedding: pooled, and projected where the model projects.",
}


def _units(trunk: Any, side: int) -> list[UnitSpec]:
    def begin(x: torch.Tensor) -> torch.Tensor:
        """Run up to the first block, by the library's public means."""
        import torch

        more = {"return_prefix_tokens": True} if trunk.num_prefix_tokens else {}
        found = trunk.forward_intermediates(
            x, indices=[0], stop_early=True, output_fmt="NLC", intermediates_only=True, **more
        )[0]
        return torch.cat([found[1], found[0]], dim=1) if more else found

    blocks = trunk.blocks
    inner = [_with_positions(trunk, place, side) for place in range(len(blocks))]
    units = [
        UnitSpec(
            ("block.0",),
            begin,
            (blocks[0],),
            "patches",
            float32_parts=((trunk, "patch_embed"),),
            is_block=True,
        )
    ]
    units += [
        UnitSpec(
            (f"block.{place}",),
            inner[place],
            (blocks[place],),
            "patches",
            (f"blocks.{place}.",),
            is_block=True,
        )
        for place in range(1, len(blocks))
    ]
    units.append(UnitSpec(("late",), trunk.norm, (trunk.norm,), "patches", ("norm.",), float32_only=True))
    heads = ("fc_norm.", "attn_pool.", "head.", "head_dist.")
    units.append(UnitSpec(("final",), trunk.forward_head, (), "none", heads, float32_only=True))
    return units


def _with_positions(trunk: Any, place: int, side: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a block with the rotary positions that it is given in a whole pass, if any."""
    block, rope = trunk.blocks[place], getattr(trunk, "rope", None)
    if rope is None:
        return block  # type: ignore[no-any-return]
    if trunk.dynamic_img_size or not hasattr(rope, "feat_shape"):
        positions = rope.get_embed(shape=trunk.patch_embed.dynamic_feat_size((side, side)))
    else:
        positions = rope.get_embed()
    if getattr(trunk, "rope_mixed", False):
        positions = positions[place]
    return lambda x: block(x, rope=positions)


def side_of_timm(trunk: Any) -> int | None:
    """Return the side of the images that a trunk was built for, if that matters to it."""
    sides = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    return int(sides[0]) if sides else None


def resize_timm(trunk: Any, side: int) -> None:
    """Set a trunk to images of another side, positions interpolated, as timm does it."""
    if hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=(side, side))


def _is(name: str) -> Callable[[Any], bool]:
    module = {"VisionTransformer": "vision_transformer", "Eva": "eva"}[name]

    def takes(trunk: Any) -> bool:
        if not is_instance(trunk, f"timm.models.{module}", name):
            return False
        base = getattr(sys.modules[f"timm.models.{module}"], name)
        return type(trunk).forward_features is base.forward_features

    return takes


def _patch(trunk: Any) -> int:
    return int(trunk.patch_embed.feat_ratio(as_scalar=True))


def _describe(trunk: Any) -> str:
    return f"patch={_patch(trunk)}, width={trunk.embed_dim}, heads={trunk.blocks[0].attn.num_heads}"


def _tokens(trunk: Any) -> tuple[int, bool]:
    return int(trunk.num_prefix_tokens), getattr(trunk, "cls_token", None) is not None


TIMM_TRANSFORMER = Family(
    title="Vision transformers of timm (DINOv2, DeiT, SigLIP's and SigLIP 2's image towers)",
    stages=_STAGES,
    matches=_is("VisionTransformer"),
    units=_units,
    built_for=side_of_timm,
    resize=resize_timm,
    size_multiple=_patch,
    prefix_tokens=_tokens,
    describe=_describe,
    examples=("ViT-B-16-SigLIP", "timm:vit_small_patch14_dinov2.lvd142m"),
)

TIMM_EVA = Family(
    title="EVA transformers of timm (EVA02, DINOv3, Perception Encoder)",
    stages=_STAGES,
    matches=_is("Eva"),
    units=_units,
    built_for=side_of_timm,
    resize=resize_timm,
    size_multiple=_patch,
    prefix_tokens=_tokens,
    describe=_describe,
    examples=("EVA02-B-16", "timm:vit_small_patch16_dinov3.lvd1689m"),
)
