"""A model's folder may come from anybody: what its files say is checked before anything is built of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY, write_model

from clipretrieval import (
    ClipRetrievalError,
    InvalidInputError,
    StagedEncoder,
    WeightsUnavailableError,
)

PICTURE = np.zeros((40, 50, 3), dtype=np.uint8)
CONFIG: dict[str, Any] = {
    "model_cfg": TINY,
    "preprocess_cfg": {
        "size": 64,
        "mean": [0.4, 0.4, 0.4],
        "std": [0.3, 0.3, 0.3],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
STRANGE: list[Any] = [None, True, -1, 14, 1.5, "x", [1], [0] * 4, {"a": 1}, 10**30, float("nan"), [None] * 3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


def use(folder: Path) -> None:
    """Do all that a model's files decide."""
    encoder = StagedEncoder(f"local-dir:{folder}", stage="final", precision="fp32")
    encoder.text.encode(["a cat"])
    encoder.encode([PICTURE])


def changed(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return config


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        (("preprocess_cfg", "size"), 14, "preprocess_cfg.size"),
        (("preprocess_cfg", "size"), [64, 96], "preprocess_cfg.size"),
        (("preprocess_cfg", "mean"), [0.4], "preprocess_cfg.mean"),
        (("preprocess_cfg", "std"), [0.3, 0.0, 0.3], "preprocess_cfg.std"),
        (("preprocess_cfg", "interpolation"), "sinc", "preprocess_cfg.interpolation"),
        (("preprocess_cfg", "interpolation"), "nearest", "preprocess_cfg.interpolation"),
        (("preprocess_cfg", "resize_mode"), 5, "preprocess_cfg.resize_mode"),
        (("model_cfg", "embed_dim"), "24", "model_cfg.embed_dim"),
        (("model_cfg", "embed_dim"), 10**30, "model_cfg.embed_dim"),
        (("model_cfg", "vision_cfg"), None, "model_cfg.vision_cfg"),
        (("model_cfg", "vision_cfg", "width"), 7, "model_cfg.vision_cfg.width"),
        (("model_cfg", "vision_cfg", "image_size"), 10**9, "model_cfg.vision_cfg.image_size"),
        (("model_cfg", "vision_cfg", "layers"), [1, 2, 2, 10**9], r"model_cfg.vision_cfg.layers\[3\]"),
        (("model_cfg", "text_cfg", "heads"), 3, "model_cfg.text_cfg.heads"),
        (("model_cfg", "text_cfg", "layers"), 10**9, "model_cfg.text_cfg.layers"),
    ],
)
def test_the_file_and_the_field_are_named(
    folder: Path, place: tuple[str, ...], value: Any, field: str
) -> None:
    """What is wrong with a configuration is told by its file, its field and its value."""
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps(changed(place, value)))
    with pytest.raises(WeightsUnavailableError, match=rf"{field} in \S*open_clip_config.json must be"):
        use(folder)


def test_two_equal_sides_are_one(folder: Path) -> None:
    """A size written as a pair is taken as the side of a square."""
    (folder / "open_clip_config.json").write_text(
        json.dumps(changed(("model_cfg", "vision_cfg", "image_size"), [64, 64]))
    )
    use(folder)


@pytest.mark.parametrize("part", ["model_cfg", "vision_cfg", "text_cfg", "preprocess_cfg"])
def test_any_value_of_any_field_is_taken_or_refused(folder: Path, part: str) -> None:
    """No field of a configuration ends in another error than one of this library."""
    places = {
        "model_cfg": [("model_cfg",), *[("model_cfg", name) for name in TINY]],
        "vision_cfg": [("model_cfg", "vision_cfg", name) for name in TINY["vision_cfg"]],
        "text_cfg": [("model_cfg", "text_cfg", name) for name in TINY["text_cfg"]],
        "preprocess_cfg": [("preprocess_cfg", name) for name in CONFIG["preprocess_cfg"]],
    }[part]
    for place in places:
        for value in STRANGE:
            (folder / "open_clip_config.json").write_text(json.dumps(changed(place, value)))
            try:
                use(folder)
            except ClipRetrievalError:
                continue


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "\0", "[" * 100_000, '{"model_cfg": 1}', "9" * 5000]
)
def test_what_is_no_configuration_is_named(folder: Path, text: str) -> None:
    """A file that holds no configuration is named."""
    (folder / "open_clip_config.json").write_text(text)
    with pytest.raises(WeightsUnavailableError, match=r"open_clip_config\.json"):
        use(folder)


def test_tensors_of_another_kind_are_named(folder: Path) -> None:
    """Complex numbers among the weights are refused with the file and the tensor."""
    file = folder / "open_clip_model.safetensors"
    state = load_file(file)
    state["visual.conv1.weight"] = state["visual.conv1.weight"].to(torch.complex64)
    save_file(state, file)
    with pytest.raises(WeightsUnavailableError, match=r"safetensors holds 'visual.conv1.weight'"):
        use(folder)


@pytest.mark.parametrize("cut", [0, 8, 100, 5000])
def test_truncated_weights_are_named(folder: Path, cut: int) -> None:
    """A file of weights that ends too early is refused by its name."""
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(WeightsUnavailableError, match=r"open_clip_model\.safetensors cannot be read"):
        use(folder)


@pytest.mark.parametrize("name", ["../..", "a/b/c", "a b", "-", "a--b", "/etc", "a/..", "\ud800", "x" * 200])
def test_a_hub_name_is_checked_before_it_is_looked_for(name: str) -> None:
    """A name that the hub cannot have is refused, and nothing is looked for in the cache or the network."""
    with pytest.raises(InvalidInputError, match="names no repository of the hub"):
        StagedEncoder(f"hf-hub:{name}")
