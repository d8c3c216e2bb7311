"""Towers that are nearly alike, and what a pass, a seed, a copy or a file may not change in them."""

from __future__ import annotations

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_towers import seeded

from clipretrieval import InvalidInputError, StagedEncoder, WeightsUnavailableError
from clipretrieval.encoding.weights.modules import _quiet_timm
from clipretrieval.encoding.weights.timm_source import data_preprocessing, timm_config


def tower(name="test_vit", **options):
    pretrained = options.pop("pretrained", None)
    return StagedEncoder(f"timm:{name}", pretrained, **{"stage": "mid", "precision": "fp32", **options})


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_pixels_are_prepared_alike_in_every_container(name):
    """A margin is cut off an array of the model's own size too."""
    encoder = tower(name)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    expected = encoder.encode([Image.fromarray(pixels)])
    np.testing.assert_array_equal(encoder.encode([pixels]), expected)


def test_pixels_beyond_the_last_whole_patch_are_left_out_as_by_the_library():
    """As in SigLIP's of 384 pixels in patches of 14."""
    model = seeded(
        lambda: timm.create_model(
            "vit_tiny_patch16_224",
            img_size=60,
            patch_size=14,
            embed_dim=32,
            depth=2,
            num_heads=2,
            num_classes=0,
        )
    )().eval()
    pixels = np.random.default_rng(1).integers(0, 256, (2, 60, 60, 3), dtype=np.uint8)
    encoder = StagedEncoder(model, stage="final", precision="fp32")
    transform = encoder._tower.source.transform()
    with torch.inference_mode():
        expected = model(torch.stack([transform(Image.fromarray(each)) for each in pixels])).numpy()
    assert encoder.image_size == 60
    np.testing.assert_allclose(encoder.encode(list(pixels)), expected, rtol=1e-4, atol=1e-5)
    halves = StagedEncoder(model, stage="final", precision="bf16").encode(list(pixels))
    assert np.abs(halves - expected).max() < 0.1 * np.abs(expected).max()


def test_a_pass_goes_on_with_the_encoder_s_pooling_or_the_one_that_is_named():
    """Not with the pooling of the stage at which it began."""
    encoder = tower()
    pixels = np.random.default_rng(2).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    begun = encoder.begin([pixels], "mid:max")
    expected = encoder.encode_stages([pixels], ["mid:max", "late", "late:cls"])
    np.testing.assert_allclose(begun.vectors, expected["mid:max"], rtol=1e-5)
    np.testing.assert_allclose(begun.advance("late").vectors, expected["late"], rtol=1e-4, atol=1e-6)
    last = begun.advance("late:cls")
    assert last.stage == "late:cls"
    np.testing.assert_allclose(last.vectors, expected["late:cls"], rtol=1e-4, atol=1e-6)


def test_a_seed_gives_the_same_weights_whoever_draws_meanwhile():
    """Threads that build towers draw one after the other, of either kind."""

    def printed(seed):
        return tower(seed=seed).fingerprint["weights"]

    alone = [printed(seed) for seed in range(3)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(printed, [0, 1, 2] * 4)) == alone * 4


def test_reading_a_file_leaves_torch_s_generator_as_it_is(tmp_path):
    """timm draws weights before it fills them, which would change those that another thread draws."""
    model = timm.create_model("test_vit")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    before = torch.get_rng_state()
    encoder = tower(stage="final", pretrained=tmp_path / "weights.pt")
    assert encoder.fingerprint["weights"] != tower(stage="final").fingerprint["weights"]
    assert torch.equal(torch.get_rng_state(), before)


def test_timm_is_quiet_in_the_thread_that_reads_and_in_no_other(caplog, tmp_path):
    """A program may follow what it loads itself meanwhile, and finds its logger as it was."""
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pt")
    logger = logging.getLogger("timm.models._builder")
    with caplog.at_level(logging.INFO, logger.name), ThreadPoolExecutor(1) as pool:
        tower(pretrained=tmp_path / "weights.pt").fingerprint  # noqa: B018
        assert not caplog.records
        with _quiet_timm():
            logger.info("mine")
            logger.error("a fault")
            pool.submit(logger.info, "another's").result()
        logger.info("afterwards")
    assert caplog.messages == ["a fault", "another's", "afterwards"]


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda each: pickle.loads(pickle.dumps(each)),
        lambda each: copy.deepcopy(each).set_params(batch_size=3),
        lambda each: copy.deepcopy(each).set_params(model="timm:test_vit2"),
    ],
    ids=["deepcopy", "pickle", "set_params", "another model"],
)
def test_an_archive_that_is_not_trusted_is_trusted_in_no_copy(copied, tmp_path):
    """A TorchScript archive that a configuration names, which may have come from anybody."""
    path = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    config = {**tower().config(), "pretrained": str(path)}
    with pytest.raises(WeightsUnavailableError, match="can run code"):
        copied(StagedEncoder.from_config(config)).fingerprint  # noqa: B018
    with pytest.raises(WeightsUnavailableError, match="do not fit"):
        copied(StagedEncoder.from_config(config)).set_params(pretrained=str(path)).fingerprint  # noqa: B018


def test_a_pickle_chooses_its_device_where_it_is_opened():
    """One that says "auto" is not of the machine that made it."""
    assert tower().__getstate__()["device"] == "auto"
    assert tower(device="cpu").__getstate__()["device"] == "cpu"


def test_models_of_timm_have_timm_s_own_weights_where_none_are_named():
    """Also where OpenAI's are among them."""
    _, _, tag = timm_config("vit_base_patch16_clip_224", "openai")
    assert tag["timm_tag"] == timm.get_pretrained_cfg("vit_base_patch16_clip_224").tag != "openai"
    _, _, tag = timm_config("vit_base_patch16_clip_224.openai", "openai")
    assert tag["timm_tag"] == "openai"


def test_a_model_of_images_that_are_no_squares_is_refused():
    """It would be given others than it was trained on."""
    cfg = {**timm.get_pretrained_cfg("test_vit").to_dict(), "input_size": (3, 192, 128)}
    with pytest.raises(InvalidInputError, match=r"takes images of 128 × 192 pixels.*encoder of your own"):
        data_preprocessing(cfg)
