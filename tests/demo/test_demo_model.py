"""The CLIP that ships with the package, and the script that trained it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from warm_process import run_warm

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.demo import KINDS, TRAINED_KINDS, UNSEEN_KINDS, demo_model, draw_many
from clipretrieval.encoding.stages import STUDY_STAGES

FOLDER = Path(demo_model().removeprefix("local-dir:"))
SCRIPT = Path(__file__).parents[2] / "examples" / "train_demo_model.py"


@pytest.fixture(scope="module")
def answers() -> dict[str, np.ndarray]:
    """The true kinds of 20 pictures of each, and what 60 others say about them, at each stage."""
    images, labels = draw_many(60, seed=11)
    others, truth = draw_many(20, seed=11, first=60)
    encoder = StagedEncoder(demo_model(), precision="fp32")
    known, new = (encoder.encode_stages(batch, STUDY_STAGES) for batch in (images, others))
    found = {
        stage: RetrievalClassifier(store="memory").fit(known[stage], labels).predict(new[stage])
        for stage in STUDY_STAGES
    }
    return {"truth": np.array(truth), **found}


def test_deeper_stages_answer_better(answers: dict[str, np.ndarray]) -> None:
    """Pixels are little better than a guess, mid is at least 30 points better, and late better still."""
    right = {stage: float((answers[stage] == answers["truth"]).mean()) for stage in STUDY_STAGES}
    assert 0.1 < right["pixel"] < 0.35
    assert right["mid"] > right["pixel"] + 0.3
    assert right["late"] > right["mid"]
    assert min(right["late"], right["final"]) > 0.7


@pytest.mark.parametrize("kind", UNSEEN_KINDS)
def test_retrieval_finds_what_the_model_never_saw(kind: str, answers: dict[str, np.ndarray]) -> None:
    """At mid and late, each unseen kind is answered far more often than one time in ten."""
    asked = answers["truth"] == kind
    for stage in ("mid", "late"):
        assert (answers[stage][asked] == kind).mean() > 0.4


def test_open_clip_loads_it_as_it_is() -> None:
    """open_clip's own factory builds the model; its names for the trained kinds beat a guess by far."""
    clip, _, prepare = open_clip.create_model_and_transforms(demo_model())
    tokenizer = open_clip.get_tokenizer(demo_model())
    images, labels = draw_many(20, seed=12, kinds=TRAINED_KINDS)
    clip.eval()
    with torch.inference_mode():
        pictures = clip.encode_image(torch.stack([prepare(image) for image in images]), normalize=True)
        prompts = clip.encode_text(tokenizer([f"a {kind}" for kind in TRAINED_KINDS]), normalize=True)
    answers = np.array(TRAINED_KINDS)[(pictures @ prompts.T).argmax(dim=1).numpy()]
    assert (answers == np.array(labels)).mean() > 0.8


def test_the_encoder_agrees_with_open_clip() -> None:
    """In float32 the final stage gives open_clip's own vectors."""
    clip, _, prepare = open_clip.create_model_and_transforms(demo_model())
    images, _ = draw_many(2, seed=13)
    clip.eval()
    with torch.inference_mode():
        expected = clip.encode_image(torch.stack([prepare(image) for image in images])).numpy()
    found = StagedEncoder(demo_model(), stage="final", precision="fp32").encode(images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_it_has_no_words_for_the_kinds_it_never_saw() -> None:
    """The words of the unseen kinds, which no caption held, are zero; those of the others are not."""
    words = load_file(FOLDER / "open_clip_model.safetensors")["token_embedding.weight"]
    tokenizer = open_clip.SimpleTokenizer()
    for kind in KINDS:
        (token,) = tokenizer.encode(kind)
        assert bool(words[token].any()) == (kind not in UNSEEN_KINDS)


def test_it_is_small_enough_to_ship() -> None:
    """Packed as in a wheel, the model takes less than 4 MB."""
    packed = sum(len(zlib.compress(path.read_bytes())) for path in FOLDER.iterdir())
    assert packed < 4_000_000
    assert sorted(path.name for path in FOLDER.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]


def test_the_script_trains_such_a_model(tmp_path: Path) -> None:
    """A few steps from nothing write a model of the same form, which an encoder takes."""
    few = ["--per-kind", "8", "--epochs", "1", "--batch-size", "32"]
    done = run_warm([SCRIPT, tmp_path / "model", *few], check=True)
    assert "64 pictures drawn" in done.stdout
    shipped, made = (
        {name: (tensor.dtype, tensor.shape) for name, tensor in load_file(file).items()}
        for file in (FOLDER / "open_clip_model.safetensors", tmp_path / "model/open_clip_model.safetensors")
    )
    assert made == shipped
    configs = [
        json.loads((folder / "open_clip_config.json").read_text()) for folder in (FOLDER, tmp_path / "model")
    ]
    assert configs[0] == configs[1]
    images, _ = draw_many(1, seed=0)
    encoder = StagedEncoder(f"local-dir:{tmp_path / 'model'}", stage="mid")
    assert encoder.encode(images).shape == (10, encoder.dim)
