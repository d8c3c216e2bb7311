"""Where weights come from, and what is said when they cannot be had."""

from __future__ import annotations

import json
import os
import socket
import warnings
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file
from tiny_models import TINY, enliven, write_model
from torch import nn

from clipretrieval import StagedEncoder, WeightsUnavailableError
from clipretrieval.encoding.text_encoder import load_clip
from clipretrieval.encoding.weights.model_source import resolve


def activations(clip: nn.Module) -> set[type]:
    """Collect the activations of the text tower."""
    return {type(m) for m in clip.transformer.modules() if isinstance(m, QuickGELU | nn.GELU)}


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    """A small model that open_clip knows by name, as it knows RN50."""
    folder = tmp_path_factory.mktemp("configs")
    for suffix, extra in (("", {}), ("-quickgelu", {"quick_gelu": True})):
        (folder / f"RNtiny{suffix}.json").write_text(json.dumps({**TINY, **extra}))
    open_clip.add_model_config(folder)
    return "RNtiny"


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return enliven(open_clip.CLIP(**TINY))


@pytest.fixture(scope="module")
def expected(clip, photographs):
    """The embedding of one photograph by open_clip's own model."""
    with torch.inference_mode():
        return clip.visual(open_clip.image_transform(64, is_train=False)(photographs[0])[None]).numpy()


def openai_archive(clip: nn.Module, path: Path) -> Path:
    """Write weights in the form of OpenAI's files: TorchScript, with three extra entries."""

    class Archive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in clip.named_children():
                setattr(self, name, child)
            self.positional_embedding = clip.positional_embedding
            self.text_projection = clip.text_projection
            self.logit_scale = clip.logit_scale
            self.register_buffer("input_resolution", torch.tensor(64))
            self.register_buffer("context_length", torch.tensor(77))
            self.register_buffer("vocab_size", torch.tensor(49408))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.visual(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; OpenAI's files stay what they are.
        torch.jit.save(torch.jit.trace(Archive().eval(), torch.zeros(1, 3, 64, 64)), str(path))
    return path


def test_torchscript_archive_is_read_with_quick_gelu(name, clip, expected, photographs, tmp_path):
    """OpenAI's own file gives its weights, and its text tower gets the activation it was trained with."""
    path = openai_archive(clip, tmp_path / "RN50.pt")
    found = StagedEncoder(name, path, "final", precision="fp32").encode(photographs[:1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert activations(load_clip(resolve(name, str(path)))) == {QuickGELU}


@pytest.mark.parametrize("wrap", ["plain", "trainer", "model", "data parallel", "image tower"])
def test_state_dicts_are_read_in_every_usual_form(name, clip, expected, photographs, tmp_path, wrap):
    """A plain state dict, a trainer's checkpoint, prefixed names and a bare image tower all load."""
    state = clip.state_dict()
    if wrap == "trainer":
        state = {"epoch": 3, "state_dict": state}
    elif wrap == "model":
        state = {"epoch": 3, "model": state}
    elif wrap == "data parallel":
        state = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    elif wrap == "image tower":
        state = clip.visual.state_dict()
    path = tmp_path / "checkpoint.pt"
    torch.save(state, path)
    found = StagedEncoder(name, path, "final", precision="fp32").encode(photographs[:1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_activation_follows_what_the_weights_say(name, clip, tmp_path):
    """GELU for ordinary weights; QuickGELU for a half-precision copy of OpenAI's, by name, or when told."""
    ordinary, halves = tmp_path / "ordinary.pt", tmp_path / "halves.pt"
    torch.save(clip.state_dict(), ordinary)
    torch.save(
        {key: value.half() if ".conv" in key else value for key, value in clip.state_dict().items()}, halves
    )
    assert activations(load_clip(resolve(name, str(ordinary)))) == {nn.GELU}
    assert activations(load_clip(resolve(name, str(halves)))) == {QuickGELU}
    assert activations(load_clip(resolve(f"{name}-quickgelu", str(ordinary)))) == {QuickGELU}
    assert activations(load_clip(resolve(name, str(ordinary)), quick_gelu=True)) == {QuickGELU}


def test_catalogue_says_that_openai_tags_need_quick_gelu():
    """The tag's entry carries the activation, though the model's name does not."""
    source = resolve("RN50", "openai")
    assert source.tag is not None
    assert source.tag["quick_gelu"]
    assert not source.model_cfg.get("quick_gelu", False)


def test_local_folder_gives_its_own_size_and_weights(tiny_model, photographs):
    """A folder's configuration decides the architecture, and its file the weights."""
    encoder = StagedEncoder(tiny_model, stage="final", precision="fp32")
    clip = open_clip.CLIP(**TINY)
    clip.load_state_dict(
        load_file(Path(tiny_model.removeprefix("local-dir:")) / "open_clip_model.safetensors")
    )
    transform = open_clip.image_transform(64, is_train=False)
    with torch.inference_mode():
        expected = clip.eval().visual(torch.stack([transform(photo) for photo in photographs])).numpy()
    np.testing.assert_allclose(encoder.encode(photographs), expected, rtol=1e-4, atol=1e-6)


def test_unreachable_hub_is_one_clear_error(monkeypatch, photographs, tmp_path):
    """When a tag's weights cannot be fetched, the error says so at once and what to pass instead."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def no_network(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    encoder = StagedEncoder("RN50", "openai", "mid")
    with pytest.raises(WeightsUnavailableError, match=r"local-dir:.*pretrained=None"):
        encoder.encode(photographs[:1])


def damaged(folder: Path, kind: str) -> Path:
    """Damage a model's folder in one way."""
    weights, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"
    if kind == "no weights":
        weights.unlink()
    elif kind == "no configuration":
        config.unlink()
    elif kind == "torn configuration":
        config.write_text(config.read_text()[:40])
    elif kind == "no model_cfg":
        config.write_text("{}")
    elif kind == "torn weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "other architecture":
        wider = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "width": 16}}
        config.write_text(json.dumps({"model_cfg": wider}))
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        *("no weights", "no configuration", "torn configuration", "no model_cfg"),
        *("torn weights", "other architecture"),
    ],
)
def test_damaged_folder_is_named(tmp_path, photographs, kind):
    """Whatever is wrong with a model's folder, the error names it and nothing random is used instead."""
    name = write_model(tmp_path / "model")
    damaged(tmp_path / "model", kind)
    with pytest.raises(
        WeightsUnavailableError, match=str(tmp_path / "model") if "other" not in kind else "fit"
    ):
        StagedEncoder(name, stage="mid").encode(photographs[:1])


def test_weights_of_another_tower_are_refused(tmp_path):
    """A folder that says it holds a vision transformer, and holds a ResNet's weights."""
    name = write_model(tmp_path / "model")
    config = {**TINY, "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}}
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(
        WeightsUnavailableError, match=r"do not fit VisionTransformer\(patch_size=16.*it lacks"
    ):
        StagedEncoder(name).fingerprint  # noqa: B018


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("ln_final.bias"), r"it lacks ln_final\.bias\."),
        (lambda state: state.update(other=torch.ones(2)), "it has other beside what belongs there"),
        (
            lambda state: state.update({"ln_final.bias": torch.ones(3)}),
            r"ln_final\.bias has the shape \(3,\) in the place of \(",
        ),
    ],
)
def test_a_text_tower_s_tensors_are_refused_by_name_too(name, clip, tmp_path, change, told):
    """In the same words as an image tower's."""
    state = dict(clip.state_dict())
    change(state)
    torch.save(state, tmp_path / "changed.pt")
    with pytest.raises(WeightsUnavailableError, match=rf"changed\.pt do not fit .*{told}.*model's name"):
        load_clip(resolve(name, str(tmp_path / "changed.pt")), text_only=True)


def test_a_text_tower_takes_scalars_in_any_shape(name, clip, tmp_path):
    """Some files hold the logit scale as one number, some as a list of one."""
    state = {key: value[None] if key == "logit_scale" else value for key, value in clip.state_dict().items()}
    torch.save(state, tmp_path / "scalar.pt")
    loaded = load_clip(resolve(name, str(tmp_path / "scalar.pt")))
    for key, value in clip.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn archive"])
def test_unreadable_checkpoint_is_named(tmp_path, photographs, content):
    """A file that is no checkpoint is an error that names it and says what was expected."""
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsUnavailableError, match=r"weights\.pt cannot be read.*Expected safetensors"):
        StagedEncoder("RN50", path, "stem").encode(photographs[:1])


def test_checkpoint_that_would_run_code_is_refused(tmp_path, photographs):
    """A pickle that calls a function when it is loaded is not loaded."""
    path, touched = tmp_path / "evil.pt", tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (touched,))

    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(WeightsUnavailableError, match=r"evil\.pt holds more than tensors.*state_dict\(\)"):
        StagedEncoder("RN50", path, "stem").encode(photographs[:1])
    assert not touched.exists()


@pytest.mark.parametrize("kind", ["holes", "damaged"])
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path, kind):
    """An archive behind gigabytes of holes, and one whose index is torn, end in the library's own error."""
    name = write_model(tmp_path / "model")
    (tmp_path / "model" / "open_clip_model.safetensors").unlink()
    file = tmp_path / "model" / "model.pt"
    if kind == "holes":
        file.touch()
        os.truncate(file, 3 << 30)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("model/constants.pkl", b"")
    if kind == "damaged":
        file.write_bytes(file.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x00"))
    with pytest.raises(
        WeightsUnavailableError, match=r"model\.pt cannot be read as a checkpoint: .*(disk|magic)"
    ):
        StagedEncoder(name).fingerprint  # noqa: B018
