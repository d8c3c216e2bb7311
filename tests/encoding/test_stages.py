"""The stage table, held against what the encoders really put out."""

from __future__ import annotations

import pytest

from clipretrieval import InvalidInputError, StagedEncoder
from clipretrieval.encoding import Architecture, stage_table

TABLE = {
    "RN50": {
        "pixel": 3072,
        "stem": 64,
        "layer1": 256,
        "layer2": 512,
        "layer3": 1024,
        "layer4": 2048,
        "layer1.2": 256,
        "layer2.3": 512,
        "layer3.5": 1024,
        "layer4.2": 2048,
        "mid": 1024,
        "late": 2048,
        "final": 1024,
    },
    "RN101": {
        "pixel": 3072,
        "stem": 64,
        "layer1": 256,
        "layer2": 512,
        "layer3": 1024,
        "layer4": 2048,
        "layer3.22": 1024,
        "mid": 1024,
        "late": 2048,
        "final": 512,
    },
    "RN50x4": {
        "pixel": 3072,
        "stem": 80,
        "layer1": 320,
        "layer2": 640,
        "layer3": 1280,
        "layer4": 2560,
        "layer3.9": 1280,
        "layer4.5": 2560,
        "mid": 1280,
        "late": 2560,
        "final": 640,
    },
}


@pytest.mark.parametrize("model", TABLE)
def test_table_agrees_with_the_vectors_that_come_out(model, photographs):
    """Every stage's dimension in the table is the one that its vectors have."""
    encoder = StagedEncoder(model, pretrained=None)
    assert {name: encoder.stages[name].dim for name in TABLE[model]} == TABLE[model]
    vectors = encoder.encode_stages(photographs[:1], encoder.stages)
    assert {name: rows.shape for name, rows in vectors.items()} == {
        name: (1, stage.dim) for name, stage in encoder.stages.items()
    }


def test_table_lists_each_block_once_and_in_order():
    """The stages come shallowest first, and the aliases stand where the study put them."""
    stages = stage_table(Architecture((1, 2, 2, 1), width=32, output_dim=128, heads=16, image_size=64))
    assert list(stages) == [
        *("pixel", "stem", "layer1.0", "layer1", "layer2.0", "layer2.1", "layer2"),
        *("layer3.0", "layer3.1", "layer3", "mid", "layer4.0", "layer4", "late", "final"),
    ]
    assert [stage.depth for stage in stages.values()] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 6, 7, 7, 7, 8]
    assert [stages[name].stride for name in ("stem", "layer1", "layer2", "mid", "late")] == [4, 4, 8, 16, 32]


@pytest.mark.parametrize("stage", ["middle", "layer3.6", "layer5", "", None, 3])
def test_unknown_stage_is_refused_with_the_known_ones(stage):
    """An unknown stage is an error that lists the study's stages and the blocks."""
    with pytest.raises(InvalidInputError, match=r"pixel, mid, late, final.*stem, layer1\.0") as caught:
        StagedEncoder("RN50", pretrained=None, stage=stage)
    assert "layer3.5" in str(caught.value)
