"""What is tried: names, arithmetic, and what is refused."""

from __future__ import annotations

import pytest

from clipretrieval import InvalidInputError, RetrievalClassifier, StagedEncoder
from clipretrieval.comparison.candidates import head_settings, stage_vectors
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.ridge import Ridge


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, pooling="max")


def test_each_vector_is_tried_once(encoder):
    """Other names of a place, poolings of what has none, and tokens of a grid, are the same vectors."""
    found = stage_vectors(encoder, ["layer2", "mid", "layer3", "final"], ["mean", "tokens", "max"])
    told = [(each.encoder.stage, each.pooling) for each in found]
    assert told == [
        *(("layer2", "mean"), ("layer2", "max"), ("mid", "mean"), ("mid", "max"), ("final", None)),
    ]
    assert len({each.name for each in found}) == 5
    assert [(each.encoder.stage, each.pooling) for each in stage_vectors(encoder, "late", None)] == [
        ("late", "max")
    ]
    joined = stage_vectors(encoder, "layer1+layer2", "mean+max")[0]
    assert (joined.encoder.stage, joined.pooling) == ("layer1+layer2", "mean+max")
    assert joined.output.dim == 2 * (encoder.stages["layer1"].dim + encoder.stages["layer2"].dim)


def test_heads_are_called_by_what_was_given():
    """Votes stand for two settings; a dict gives any arguments of a classifier; repeats are tried once."""
    found = head_settings(
        ["votes", "discriminant", {"k": 5, "weights": "distance"}, Discriminant(0.1), "discriminant"]
    )
    assert [(each.name, each.k) for each in found] == [
        ("votes k=1", 1),
        ("votes k=20 softmax normalize", 20),
        ("discriminant", 0),
        ("votes k=5 distance", 5),
        ("discriminant(shrinkage=0.1)", 0),
    ]
    assert found[1].classifier().get_params()["weights"] == "softmax"
    assert head_settings("fused")[0].k == 20
    assert head_settings({"head": "ridge", "priors": "empirical"})[0].name == "ridge priors=empirical"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({"k": 1}, 50 * 1000),
        ("discriminant", 50 * 7),
        ("quadratic", 50 * 50 * 7),
        (Ridge(features=64), 50 * 64 + 64 * 7),
        (Fused(ridge=Ridge(features=64)), 50 * 1000 + 50 * 7 + 50 * 64 + 64 * 7),
    ],
)
def test_the_arithmetic_of_an_answer(head, expected):
    """It is that of an exact search where neighbors are read, and of the head's products."""
    (setting,) = head_settings([head])
    assert setting.multiply_adds(50, 1000, 7) * 1e9 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("heads", "told"),
    [
        ([], "heads is empty"),
        (["votes", "best"], "unknown head 'best'"),
        ([{"kk": 3}], "'kk', which is none of a classifier's arguments"),
        ([{"k": 0}], "k must be"),
        ([{"store": "memory"}], "'store', which is none"),
        ([3], "no head"),
        ({"discriminant"}, "in an order"),
    ],
)
def test_what_is_no_head_is_refused(heads, told):
    """The error says which one, before any image is read."""
    with pytest.raises(InvalidInputError, match=told):
        head_settings(heads)


def test_what_is_no_stage_or_encoder_is_refused(encoder):
    """Stages and poolings are those of the encoder."""
    for arguments, told in (
        ((encoder, ["nowhere"], None), "unknown stage 'nowhere'"),
        ((encoder, [], None), "stages is empty"),
        ((encoder, ["mid"], ["median"]), "pooling must be one of"),
        ((encoder, ["mid"], []), "poolings is empty"),
        ((RetrievalClassifier(), ["mid"], None), "encoder must be a StagedEncoder"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            stage_vectors(*arguments)
