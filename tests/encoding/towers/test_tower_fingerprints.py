"""What no tensor shows decides vectors too: fingerprints differ where they do, and nowhere else."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transformer import QuickGELU
from tiny_towers import seeded
from torch import nn

from clipretrieval import InvalidInputError, StagedEncoder

PIXELS = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)


def transformer(**options):
    size = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 4, "heads": 2, "mlp_ratio": 4}
    return open_clip.transformer.VisionTransformer(**{**size, "output_dim": 24, **options})


def of_timm(name, **options):
    return timm.create_model(name, **{"num_classes": 0, **options})


def test_vit(**options):
    return of_timm(
        "vit_tiny_patch16_224", **{"img_size": 64, "embed_dim": 32, "depth": 4, "num_heads": 2, **options}
    )


test_vit.__test__ = False
POOLED = {"pool_type": "avg"}
ATTENTIVE = {"attentional_pool": True, "attn_pooler_queries": 4, "output_dim": 32}
ROPE = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}
PAIRS = {
    "activation": (test_vit, {}, {"act_layer": QuickGELU}, "block.0"),
    "epsilon": (
        test_vit,
        {},
        {"norm_layer": lambda dim, **more: nn.LayerNorm(dim, eps=0.5, **more)},
        "block.0",
    ),
    "heads": (test_vit, {"num_heads": 4}, {"num_heads": 8}, "block.0"),
    "stride": (
        of_timm,
        {"model_name": "resnet18"},
        {"model_name": "resnet18", "output_stride": 8},
        "layer3.0",
    ),
    "pooling of a grid": (
        of_timm,
        {"model_name": "test_convnext", "global_pool": "avg"},
        {"model_name": "test_convnext", "global_pool": "max"},
        "final",
    ),
    "pooling of tokens": (transformer, {}, POOLED, "final"),
    "norm after pooling": (transformer, POOLED, {**POOLED, "final_ln_after_pool": True}, "late"),
    "heads of the pooling": (transformer, ATTENTIVE, {**ATTENTIVE, "attn_pooler_heads": 2}, "final"),
    "rotary positions": (
        of_timm,
        {"model_name": "vit_small_patch16_dinov3", **ROPE},
        {"model_name": "vit_small_patch16_dinov3", **ROPE, "rope_temperature": 4.0},
        "block.0",
    ),
}


def encoder_of(make, options):
    options = dict(options)
    name = [options.pop("model_name")] if "model_name" in options else []
    return StagedEncoder(seeded(lambda: make(*name, **options))(), stage="final", precision="fp32")


def test_what_no_tensor_shows(subtests):
    """From the first stage whose vectors differ, and not before."""
    for kind, (make, first, second, stage) in PAIRS.items():
        with subtests.test(kind):
            one, other = (encoder_of(make, options) for options in (first, second))
            depth = one.stages[stage].depth
            told = []
            names = [name for name, each in one.stages.items() if each.depth and name in other.stages]
            # In one pass: for each stage alone, the tower would be traced once more.
            vectors, others = (encoder.encode_stages(list(PIXELS), names) for encoder in (one, other))
            for name in names:
                each, a, b = one.stages[name], vectors[name], others[name]
                differ = a.shape != b.shape or not np.allclose(a, b, rtol=1e-5, atol=1e-6)
                same = one.fingerprint_of(name) == other.fingerprint_of(name)
                told.append(same)
                assert differ != same, name
                assert same == (each.depth < depth), name
            assert told[-1] is False


def test_equal_beginnings_of_unequal_towers():
    """Blocks that do not run are in no fingerprint, and neither is their number."""
    short, long = transformer(layers=2), transformer(layers=4, output_dim=8)
    state = long.state_dict()
    short.load_state_dict(
        {
            **short.state_dict(),
            **{
                name: state[name]
                for name, value in short.state_dict().items()
                if value.shape == state[name].shape
            },
        }
    )
    one, other = (StagedEncoder(each, stage="block.0", precision="fp32") for each in (short, long))
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(one.encode(list(PIXELS)), other.encode(list(PIXELS)))
    assert one.fingerprint_of("final") != other.fingerprint_of("final")


@pytest.mark.parametrize("name", ["gmlp_ti16_224", "efficientformer_l1"])
def test_an_image_size_that_a_network_cannot_take(name):
    """At once, not at the first image."""
    with pytest.raises(InvalidInputError, match=r"image_size=128 is none that .*; its own is 224"):
        StagedEncoder(f"timm:{name}", None, image_size=128)


def test_a_model_of_one_channel():
    model = timm.create_model("test_vit", in_chans=1, num_classes=0)
    with (
        torch.no_grad(),
        pytest.raises(InvalidInputError, match="has in_chans=1, and StagedEncoder makes RGB"),
    ):
        StagedEncoder(model)
