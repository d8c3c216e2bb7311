"""Every family of towers: stopped where it is told to, with what the library's own modules give."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from tiny_towers import TOWERS, VIT, clip_of, counted_modules, seeded

from clipretrieval import StagedEncoder

STAGES = ("mid", "late", "final")


@pytest.fixture(scope="module")
def towers():
    """Each family's encoder in float32, with the module that it was made of and the images' own tensors."""
    made = {}

    def get(name):
        if name not in made:
            module = TOWERS[name].make()
            made[name] = (
                module,
                StagedEncoder(module, stage="mid", precision="fp32", device="cpu", batch_size=3),
            )
        return made[name]

    return get


def normalized(encoder, photographs):
    """Prepare images as the tower's library does."""
    transform = encoder._tower.source.transform()
    return torch.stack([transform(photo) for photo in photographs])


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def pooled(tower, activations, pooling="mean"):
    """Pool as the documentation says, by NumPy."""
    x = activations.double().numpy()
    if x.ndim == 2:
        return x
    is_grid = tower.prefix is None
    flat = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1) if is_grid else x[:, tower.prefix :]
    side = int(flat.shape[1] ** 0.5)
    if pooling == "cls":
        return x[:, 0]
    if pooling == "mean":
        return flat.mean(axis=1)
    if pooling == "max":
        return flat.max(axis=1)
    if pooling == "gem":
        return (np.maximum(flat, 1e-6) ** 3).mean(axis=1) ** (1 / 3)
    grid = torch.from_numpy(flat.transpose(0, 2, 1).reshape(len(x), -1, side, side))
    return torch.nn.functional.adaptive_avg_pool2d(grid, 2).flatten(1).numpy()


@pytest.mark.parametrize("name", TOWERS)
def test_stages_are_those_of_a_walk_through_the_library_s_modules(towers, photographs, name):
    """To 1e-5, of several stages from one pass that runs each block once."""
    tower, (module, encoder) = TOWERS[name], towers(name)
    with torch.inference_mode():
        images = normalized(encoder, photographs)
        expected = tower.walk(module, images)
        whole = module(images)
    assert torch.allclose(expected["final"], whole, rtol=1e-4, atol=1e-5), (
        "the walk is the library's own pass"
    )
    encoder.encode_stages(photographs[:1], STAGES)  # builds what it needs
    with counted_modules() as counts:
        found = encoder.encode_stages(photographs, STAGES)
    for stage in STAGES:
        assert found[stage].dtype == np.float32
        assert found[stage].shape == (len(photographs), encoder.stages[stage].dim)
        assert relative(found[stage], pooled(tower, expected[stage])) < 1e-5, stage
    passes = -(-len(photographs) // min(3, encoder.plan.inner_batch))
    assert counts[tower.block] == passes * tower.blocks[2]


@pytest.mark.parametrize("name", TOWERS)
def test_later_blocks_do_not_run(towers, photographs, name):
    tower, (_, encoder) = TOWERS[name], towers(name)
    for stage, blocks in zip(STAGES, tower.blocks, strict=True):
        encoder.encode_stages(photographs[:1], [stage])  # builds what it needs
        with counted_modules() as counts:
            encoder.encode_stages(photographs[:1], [stage])
        assert counts[tower.block] == blocks, stage
        if stage == "mid":
            assert not counts["NormMlpClassifierHead"] + counts["SelectAdaptivePool2d"]


@pytest.mark.parametrize("name", TOWERS)
def test_a_batch_gives_what_its_images_give_one_by_one(towers, photographs, name):
    _, encoder = towers(name)
    together = encoder.encode_stages(photographs[:3], STAGES)
    for row in range(3):
        alone = encoder.encode_stages([photographs[row]], STAGES)
        for stage in STAGES:
            assert relative(alone[stage][0], together[stage][row]) < 1e-5, stage


@pytest.mark.parametrize("name", TOWERS)
def test_going_on_computes_nothing_twice(towers, photographs, name):
    """Some images go on from the middle: only later blocks run, and the vectors are those of a whole pass."""
    tower, (_, encoder) = TOWERS[name], towers(name)
    whole = encoder.encode_stages(photographs[:3], STAGES)
    halfway = encoder.begin(photographs[:3], "mid")
    np.testing.assert_array_equal(halfway.vectors, whole["mid"])
    with counted_modules() as counts:
        late = halfway.advance("late", rows=[2, 0])
        final = late.advance("final")
    passes = -(-2 // min(3, encoder.plan.inner_batch))
    assert counts[tower.block] == passes * (tower.blocks[1] - tower.blocks[0])
    assert relative(late.vectors, whole["late"][[2, 0]]) < 1e-5
    assert relative(final.vectors, whole["final"][[2, 0]]) < 1e-5
    np.testing.assert_array_equal(halfway.advance("mid").vectors, whole["mid"])


@pytest.mark.parametrize("name", ["open_clip ViT", "timm DINOv3", "timm ConvNeXt"])
def test_images_leave_a_pass_where_they_are_told_to(towers, photographs, name):
    tower, (_, encoder) = TOWERS[name], towers(name)
    with counted_modules() as counts:
        batches = list(
            encoder.stream_exits(
                photographs[:3],
                stages=("mid", "late"),
                stay_on=lambda place, batch: np.array([index == 1 for index in batch.indices]),
            )
        )
    assert [index for batch in batches for index in batch.indices] == [0, 1, 2]
    inner = min(3, encoder.plan.inner_batch)
    assert counts[tower.block] == -(-3 // inner) * tower.blocks[0] + tower.blocks[1] - tower.blocks[0]


@pytest.mark.parametrize("name", ["open_clip ViT", "timm DINOv2", "timm ConvNeXt"])
@pytest.mark.parametrize("pooling", ["mean", "tokens", "max", "gem", "grid", "cls"])
def test_poolings(towers, photographs, name, pooling):
    """Of the patches alone; ``cls`` is the class token, and ``tokens`` the same as ``mean``."""
    tower, (module, encoder) = TOWERS[name], towers(name)
    if pooling == "cls" and tower.prefix is None:
        return
    with torch.inference_mode():
        expected = tower.walk(module, normalized(encoder, photographs[:2]))
    for stage in ("mid", "late"):
        found = encoder.encode_stages(photographs[:2], [f"{stage}:{pooling}"])[f"{stage}:{pooling}"]
        wanted = pooled(tower, expected[stage], "mean" if pooling == "tokens" else pooling)
        assert relative(found, wanted) < 1e-5, stage


@pytest.mark.parametrize("name", TOWERS)
def test_bf16_keeps_the_direction_of_every_vector(towers, photographs, name):
    module, exact = towers(name)
    rounded = StagedEncoder(module, stage="mid", precision="bf16", device="cpu", batch_size=3)
    expected = exact.encode_stages(photographs[:4], STAGES)
    for stage, found in rounded.encode_stages(photographs[:4], STAGES).items():
        a, b = found.astype(float), expected[stage].astype(float)
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosines.min() > 0.9995, (stage, cosines.min())


def test_the_caller_s_module_and_settings_are_left_alone(photographs):
    module = TOWERS["open_clip ViT"].make().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    encoder = StagedEncoder(module, stage="final", precision="fp32", image_size=96)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.encode(photographs[:1])
    np.testing.assert_array_equal(found, encoder.encode(photographs[:1]))
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", TOWERS)
def test_stages_and_arithmetic_grow_with_depth(towers, name):
    """Blocks are named, cost what they cost, and a quarter, a half and three quarters are there to try."""
    _, encoder = towers(name)
    stages = encoder.stages
    depths = [stage.depth for stage in stages.values()]
    assert depths == sorted(depths)
    assert next(iter(stages)) == "pixel"
    assert list(stages)[-2:] == ["late", "final"]
    costs = [encoder.multiply_adds(stage) for stage in stages]
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert 0 < encoder.multiply_adds("mid") < encoder.multiply_adds("final")


def test_arithmetic_is_that_of_the_products(towers):
    """A transformer's, by hand: 17 tokens, of width 32, in four blocks."""
    _, encoder = towers("open_clip ViT")
    block = 17 * 32 * 32 * 12 + 2 * 17 * 17 * 32
    embedding, projection = 16 * 3 * 16 * 16 * 32, 32 * 24
    assert encoder.multiply_adds("mid") == pytest.approx((embedding + 2 * block) / 1e9)
    assert encoder.multiply_adds("final") == pytest.approx((embedding + 4 * block + projection) / 1e9)


def test_fingerprints_tell_towers_apart():
    """Weights that run count, those that do not run do not, and heads do, which no tensor's shape shows."""
    module, other = TOWERS["open_clip ViT"].make(), TOWERS["open_clip ViT"].make()
    encoder, twin = StagedEncoder(module, stage="mid"), StagedEncoder(other, stage="mid")
    assert encoder.fingerprint == twin.fingerprint
    with torch.no_grad():
        other.transformer.resblocks[3].mlp.c_fc.weight += 1
        other.ln_post.weight += 1
    changed = StagedEncoder(other, stage="mid")
    assert changed.fingerprint == encoder.fingerprint
    for stage in ("block.3", "late", "final"):
        assert changed.fingerprint_of(stage) != encoder.fingerprint_of(stage)
    assert encoder.fingerprint["model"].startswith("VisionTransformer(patch=16, width=32, heads=2")
    resized = StagedEncoder(module, stage="mid", image_size=96).fingerprint
    assert resized["weights"] == encoder.fingerprint["weights"]
    assert resized["image_size"] == 96
    assert encoder.fingerprint_of("pixel") == StagedEncoder(stage="pixel").fingerprint


def test_encoders_survive_pickling(photographs):
    encoder = StagedEncoder("timm:test_vit", None, "mid", pooling="cls", precision="fp32", seed=3)
    copied = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(copied.encode(photographs[:1]), encoder.encode(photographs[:1]))
    assert copied.fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"attentional_pool": True, "attn_pooler_heads": 2},
        {"attentional_pool": "parallel", "attn_pooler_heads": 2},
        {"attentional_pool": "cascade", "attn_pooler_heads": 2},
        {"final_ln_after_pool": True, "pool_type": "avg", "no_ln_pre": True},
        {"qk_norm": True, "scale_attn": True},
    ],
    ids=str,
)
def test_every_head_of_open_clip_s_transformers(options, photographs):
    """CoCa's attention pools, which attend to something else than themselves, and norms in other places."""
    config = {**VIT, "embed_dim": 32, "vision_cfg": {**VIT["vision_cfg"], **options}}
    module = seeded(lambda: clip_of(config).visual)()
    encoder = StagedEncoder(module, stage="final", precision="fp32")
    with torch.inference_mode():
        expected = module(normalized(encoder, photographs[:2])).reshape(2, -1)
    assert relative(encoder.encode(photographs[:2]), expected.numpy()) < 1e-5
    if "attentional_pool" in options or "final_ln_after_pool" in options:
        assert encoder.stages["late"].depth == encoder.stages["block.3"].depth
