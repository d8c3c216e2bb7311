"""open_clip's ``VisionTransformer``: ViT-B-32, ViT-B-16, ViT-L-14, CoCa's image towers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clipretrieval._util.foreign import is_instance
from clipretrieval.encoding.towers.family import Family, UnitSpec

if TYPE_CHECKING:
    import torch

__all__ = ["OPEN_CLIP_TRANSFORMER"]


def _units(visual: Any, side: int) -> list[UnitSpec]:
    blocks = visual.transformer.resblocks

    def begin(x: torch.Tensor) -> torch.Tensor:
        """Run up to the first block, by the library's public means."""
        import torch

        found = visual.forward_intermediates(
            x,
            indices=[0],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return torch.cat([found["image_intermediates_prefix"][0], found["image_intermediates"][0]], dim=1)

    units = [
        UnitSpec(
            ("block.0",), begin, (blocks[0],), "patches", float32_parts=((visual, "conv1"),), is_block=True
        )
    ]
    units += [
        UnitSpec(
            (f"block.{place}",),
            block,
            (block,),
            "patches",
            (f"transformer.resblocks.{place}.",),
            is_block=True,
        )
        for place, block in enumerate(blocks)
        if place
    ]
    pools_first = visual.attn_pool is not None or visual.final_ln_after_pool
    if not pools_first:
        norm = visual.ln_post
        units.append(UnitSpec(("late",), norm, (norm,), "patches", ("ln_post.",), float32_only=True))
    heads = ("proj", "attn_pool.", "attn_pool_contrastive.", *(("ln_post.",) if pools_first else ()))
    if pools_first:
        units[-1] = replace(units[-1], stages=(*units[-1].stages, "late"))

    def finish(x: torch.Tensor) -> torch.Tensor:
        pooled = _pool(visual, x)
        return pooled if visual.proj is None else pooled @ visual.proj

    ends = [part for part in (visual.ln_post, visual.attn_pool) if part is not None]
    units.append(UnitSpec(("final",), finish, ends, "none", heads, float32_only=True))
    return units


def _pool(visual: Any, x: torch.Tensor) -> torch.Tensor:
    """Pool tokens as the tower was trained to; they have been normalized if that comes first."""
    if visual.attn_pool is None:
        pooled = _global_pool(visual, x)
        return visual.ln_post(pooled) if visual.final_ln_after_pool else pooled
    if visual.attn_pool_contrastive is None:
        return _global_pool(visual, visual.ln_post(visual.attn_pool(x)))
    x = visual.ln_post(x)
    if visual.attn_pool_type == "cascade":
        x = visual.attn_pool(x)
    return visual.attn_pool_contrastive(x)[:, 0]  # type: ignore[no-any-return]


def _global_pool(visual: Any, x: torch.Tensor) -> torch.Tensor:
    if visual.pool_type == "avg":
        return x[:, 1:].mean(dim=1)
    return x[:, 0] if visual.pool_type == "tok" else x


def _resize(visual: Any, side: int) -> None:
    """Interpolate the positions, as open_clip does for weights of another size."""
    from types import SimpleNamespace

    import torch
    from open_clip.model import resize_pos_embed

    patch = visual.patch_size[0]
    visual.image_size, visual.grid_size = (side, side), (side // patch, side // patch)
    state = {"visual.positional_embedding": visual.positional_embedding.detach()}
    resize_pos_embed(state, SimpleNamespace(visual=visual))
    visual.positional_embedding = torch.nn.Parameter(
        state["visual.positional_embedding"], requires_grad=False
    )


def _describe(visual: Any) -> str:
    block = visual.transformer.resblocks[0]
    activation = next((type(part).__name__ for part in block.mlp if not list(part.parameters())), "none")
    return (
        f"patch={visual.patch_size[0]}, width={visual.transformer.width}, heads={block.attn.num_heads}, "
        f"activation={activation}"
    )


OPEN_CLIP_TRANSFORMER = Family(
    title="Vision transformers of open_clip",
    stages={
        "block.N": "Output of block N: the class token and the patches.",
        "mid": "Output of the block with which half of them have run.",
        "late": "The last block's tokens after the final norm, from which the embedding is projected.",
        "final": "CLIP's embedding, not normalized.",
    },
    matches=lambda visual: is_instance(visual, "open_clip.transformer", "VisionTransformer"),
    units=_units,
    built_for=lambda visual: int(visual.image_size[0]),
    resize=_resize,
    size_multiple=lambda visual: int(visual.patch_size[0]),
    prefix_tokens=lambda visual: (1, True),
    describe=_describe,
    examples=("ViT-B-32", "ViT-B-16", "ViT-L-14"),
)
