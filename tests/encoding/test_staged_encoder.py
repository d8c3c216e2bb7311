"""StagedEncoder's vectors, against a walk of open_clip's own modules."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import TINY, counted_convolutions

from clipretrieval import InvalidInputError, StagedEncoder

STAGES = ("pixel", "stem", "layer1", "layer2.1", "mid", "layer4.0", "late", "final")
# RN50's convolutions up to each stage: 3 in the stem, 3 a block and 1 for each layer's shortcut.
CONVOLUTIONS = {"pixel": 0, "stem": 3, "layer1": 13, "layer2": 26, "layer3.2": 36, "mid": 45, "late": 55}


def walk(visual, transform, photographs):
    """Compute the study's stages with open_clip's own modules, by hand."""
    batch = torch.stack([transform(photo) for photo in photographs])
    with torch.inference_mode():
        third = visual.layer3(visual.layer2(visual.layer1(visual.stem(batch))))
        fourth = visual.layer4(third)
        grid = fourth.flatten(2).permute(0, 2, 1)
        tokens = torch.cat([grid.mean(1, keepdim=True), grid], 1) + visual.attnpool.positional_embedding
        small = [np.asarray(photo.resize((32, 32), Image.Resampling.BICUBIC)) for photo in photographs]
        return {
            "mid": third.mean((2, 3)).numpy(),
            "late": tokens.mean(1).numpy(),
            "final": visual(batch).numpy(),
            "pixel": np.stack(small).transpose(0, 3, 1, 2).reshape(len(small), -1) / 255.0,
        }


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_rn50_equals_open_clip(rn50_tower, rn50_file, photographs):
    """Each of the study's stages equals open_clip's modules walked by hand, to 1e-5 in fp32."""
    squares = [photo.crop((0, 0, 160, 160)) for photo in photographs[:3]]
    expected = walk(rn50_tower, open_clip.image_transform(224, is_train=False), squares)
    found = StagedEncoder("RN50", rn50_file, precision="fp32").encode_stages(squares, list(expected))
    for stage, vectors in expected.items():
        assert found[stage].dtype == np.float32
        assert relative(found[stage], vectors) < 1e-5, stage


@pytest.mark.parametrize(("stage", "count"), CONVOLUTIONS.items())
def test_nothing_past_the_stage_runs(rn50_file, photographs, stage, count):
    """Only the convolutions up to the stage run, and the attention pool never does before ``final``."""
    encoder = StagedEncoder("RN50", rn50_file, stage=stage)
    with counted_convolutions() as ran:
        encoder.encode(photographs[:1])
    assert len(ran) == count


def test_one_pass_serves_several_stages(tiny_model, photographs):
    """Asking for four stages runs each convolution once and gives what four passes give."""
    encoder = StagedEncoder(tiny_model, precision="fp32")
    with counted_convolutions() as ran:
        together = encoder.encode_stages(photographs[:2], ("late", "pixel", "mid", "layer1"))
    assert len(ran) == 3 + 6 * 3 + 4  # the stem, six blocks, and a shortcut for each layer
    for stage, vectors in together.items():
        alone = StagedEncoder(tiny_model, stage=stage, precision="fp32").encode(photographs[:2])
        np.testing.assert_allclose(vectors, alone, rtol=1e-5, atol=1e-5)


def test_a_batch_gives_what_its_images_give_alone(tiny_model, photographs):
    """Vectors do not depend on what else is in the batch, nor on its size."""
    encoder = StagedEncoder(tiny_model, batch_size=8, precision="fp32")
    whole = encoder.encode_stages(photographs, STAGES)
    threes = StagedEncoder(tiny_model, batch_size=3, precision="fp32").encode_stages(photographs, STAGES)
    for stage in STAGES:
        alone = np.concatenate([encoder.encode_stages([photo], [stage])[stage] for photo in photographs])
        np.testing.assert_allclose(alone, whole[stage], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(threes[stage], whole[stage], rtol=1e-5, atol=1e-6)


def test_pixel_stage_is_the_picture_itself():
    """A 32×32 picture becomes its own values in [0, 1], channel first, not normalised."""
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = StagedEncoder(stage="pixel").encode([Image.fromarray(values)])
    np.testing.assert_array_equal(found, (values.transpose(2, 0, 1).reshape(1, -1) / np.float32(255)))


def test_pixel_stage_reads_no_weights(photographs):
    """The pixel stage works where the model's weights cannot be had."""
    encoder = StagedEncoder("RN50", "openai", "pixel")
    assert encoder.encode(photographs).shape == (8, 3072)
    assert encoder.dim == 3072


def test_encoder_leaves_the_random_state_alone(photographs):
    """Random weights come from their own seed, and the caller's generator goes on as if nothing was."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = StagedEncoder("RN50", None, "stem", seed=1).encode(photographs[:1])
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(
        first, StagedEncoder("RN50", None, "stem", seed=np.int64(1)).encode(photographs[:1])
    )
    other = StagedEncoder("RN50", None, "stem", seed=2).encode(photographs[:1])
    assert np.abs(first - other).max() > 1e-3


def test_image_size_interpolates_the_positions(tiny_model, photographs):
    """At twice the size the grid doubles, and the positional embedding is resized as open_clip resizes."""
    encoder = StagedEncoder(tiny_model, image_size=128, precision="fp32")
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 128}}
    larger = open_clip.CLIP(**config)
    state = load_file(Path(tiny_model.removeprefix("local-dir:")) / "open_clip_model.safetensors")
    grid = state["visual.attnpool.positional_embedding"]
    resized = torch.nn.functional.interpolate(
        grid[1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2), (4, 4), mode="bicubic", antialias=True
    )
    state["visual.attnpool.positional_embedding"] = torch.cat([grid[:1], resized.flatten(2)[0].T])
    larger.load_state_dict(state)
    transform = open_clip.image_transform(128, is_train=False)
    expected = walk(larger.eval().visual, transform, photographs)
    found = encoder.encode_stages(photographs, ("mid", "late", "final"))
    for stage, vectors in found.items():
        assert relative(vectors, expected[stage]) < 1e-5, stage
    assert encoder.fingerprint != StagedEncoder(tiny_model).fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "median"}, "mean"),
        ({"precision": "int3"}, "fp32"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": True}, "at least 1"),
        ({"image_size": 100}, "multiple of 32"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "abacus"}, "abacus"),
        ({"model": "RN51"}, "near it are RN50.* RN101"),
        ({"pretrained": "/no/such/file.pt"}, "its tags: openai"),
    ],
)
def test_arguments_are_checked_at_once(arguments, message):
    """A wrong argument is refused when the encoder is made, with what would be right."""
    with pytest.raises(InvalidInputError, match=message):
        StagedEncoder(**{"pretrained": None, **arguments})


def test_pixel_stage_ignores_how_the_model_resizes(tiny_model, tmp_path, photographs):
    """A model that resizes bilinearly gives the same pixels, and the same fingerprint, as any other."""
    folder = shutil.copytree(tiny_model.removeprefix("local-dir:"), tmp_path / "bilinear")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text()) | {"preprocess_cfg": {"interpolation": "bilinear"}}
    path.write_text(json.dumps(config))
    bilinear, bicubic = StagedEncoder(f"local-dir:{folder}"), StagedEncoder(tiny_model)
    pixels = [encoder.encode_stages(photographs, ["pixel", "stem"]) for encoder in (bilinear, bicubic)]
    np.testing.assert_array_equal(pixels[0]["pixel"], pixels[1]["pixel"])
    assert np.abs(pixels[0]["stem"] - pixels[1]["stem"]).max() > 1e-3
    assert bilinear.fingerprint_of("pixel") == bicubic.fingerprint_of("pixel")
    assert bilinear.fingerprint != bicubic.fingerprint


def test_encoder_survives_pickling(tiny_model, photographs):
    """A copy made for another process encodes alike."""
    encoder = StagedEncoder(tiny_model, stage="mid", image_size=96, batch_size=3)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(encoder)).encode(photographs), encoder.encode(photographs)
    )


def test_no_images_is_an_error(tiny_model):
    """Encoding nothing is refused rather than answered with an array of unknown shape."""
    with pytest.raises(InvalidInputError, match="at least one"):
        StagedEncoder(tiny_model).encode([])


def test_import_loads_neither_torch_nor_faiss():
    """Importing the package, and listing its names, loads no heavy dependency."""
    code = (
        "import sys, clipretrieval, clipretrieval.stores, clipretrieval.encoding; dir(clipretrieval);"
        "print([m for m in ('torch', 'faiss', 'open_clip', 'sklearn', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
