"""Squares are cut as open_clip cuts them, to the last byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from open_clip.transform import MaybeConvertMode, PreprocessCfg, image_transform_v2
from PIL import Image

from clipretrieval.encoding.geometry import Geometry
from clipretrieval.encoding.preparation import Preparation


def by_open_clip(image, cfg):
    """Apply open_clip's own transform up to where it makes a tensor."""
    for step in image_transform_v2(PreprocessCfg(**cfg), is_train=False).transforms:
        if isinstance(step, MaybeConvertMode):
            return image
        image = step(image)
    raise AssertionError("open_clip's transform makes no tensor")


@given(
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from((32, 64, 96)),
    st.sampled_from(("shortest", "longest", "squash")),
    st.sampled_from(("bicubic", "bilinear", "random")),
    st.integers(0, 255),
)
def test_squares_are_those_of_open_clip(sides, size, mode, interpolation, fill):
    width, height = sides
    pixels = np.random.default_rng(width * 200 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    cfg = {"size": size, "interpolation": interpolation, "resize_mode": mode, "fill_color": fill}
    # open_clip resizes what is narrower to a side of no pixels, and fails.
    assume(mode != "longest" or min(sides) * size >= max(sides))
    found = Geometry.of(cfg).square(image)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(by_open_clip(image, cfg)))


def test_a_narrow_image_is_padded_too():
    """Where the shorter side would vanish, a pixel stays."""
    image = Image.new("RGB", (400, 1), (200, 100, 50))
    square = np.asarray(Geometry(32, resize_mode="longest", fill_color=(1, 2, 3)).square(image))
    assert square.shape == (32, 32, 3)
    assert (square == (200, 100, 50)).all(axis=2).sum() == 32
    assert (square == (1, 2, 3)).all(axis=2).sum() == 32 * 31


@pytest.mark.parametrize("wrong", [{"interpolation": "nearest"}, {"resize_mode": "largest"}])
def test_what_open_clip_has_no_way_for_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Geometry(32, **wrong)


@pytest.mark.parametrize("crop_pct", [1.0, 0.95])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_an_array_of_the_model_s_own_size_is_cut_as_its_image_is(mode, crop_pct):
    """Left as it is where there is no margin, and resized and cut where there is one."""
    cfg = {"size": 64, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": mode}
    prepared = Preparation({**cfg, "crop_pct": crop_pct})
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = prepared.batch([pixels, Image.fromarray(pixels)], pixel=False, clip=True)["clip"]
    resized = Image.fromarray(pixels).resize((67, 67), Image.Resampling.BICUBIC).crop((2, 2, 66, 66))
    expected = pixels if crop_pct == 1 else np.asarray(resized)
    np.testing.assert_array_equal(found, [expected, expected])
