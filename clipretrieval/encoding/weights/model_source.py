"""Where a CLIP model comes from: open_clip's tags, checkpoint files, local folders, or a seed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipretrieval._util.checks import check_path, shown
from clipretrieval.encoding.preparation import Preparation
from clipretrieval.encoding.stages import Architecture
from clipretrieval.encoding.weights.checkpoints import (
    find_weights,
    is_published,
    is_torchscript,
    read_state_dict,
)
from clipretrieval.encoding.weights.download import ADVICE, fetch_config, fetch_tag
from clipretrieval.encoding.weights.open_clip_config import merged_preprocessing, read_config
from clipretrieval.errors import InvalidInputError, WeightsUnavailableError

__all__ = ["ModelSource", "load_strictly", "load_visual", "read_source", "resolve"]

LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
HUB_NAME = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9_])?(/[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?)?", re.ASCII)
"""What the hub takes for a repository's name; it is looked for in the cache as a path."""


@dataclass(frozen=True)
class ModelSource:
    """A model's configuration, and where its weights are to come from.

    Attributes
    ----------
    model_cfg : dict
        open_clip's ``embed_dim``, ``vision_cfg``, ``text_cfg``, perhaps ``quick_gelu``.
    preprocess_cfg : dict
        open_clip's ``size``, ``mean``, ``std``, ``interpolation``, ``resize_mode``, …
    tag : dict or None
        open_clip's entry for a pretrained tag, when the weights are to be fetched.
    path : Path or None
        The checkpoint, when it is at hand. With neither tag nor path the weights are random.
    trusted : bool
        Whether the caller named the checkpoint. A TorchScript archive can run code when it is opened, so
        one that comes from elsewhere (a model's folder, a saved classifier) is opened only if it is one
        of OpenAI's own.
    module : open_clip.CLIP, its ModifiedResNet, or None
        A model that the caller built; its weights are copied.
    config : Path or str
        Where the configuration was read from, for messages.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tag: dict[str, Any] | None
    path: Path | None
    trusted: bool = False
    module: nn.Module | None = None
    config: Path | str = "open_clip's own configuration"

    def arguments(self, model: str | nn.Module, pretrained: str | None) -> dict[str, Any]:
        """Return an encoder's `model` and `pretrained` with local paths in full."""
        if self.path is not None:
            local = self.path.absolute()
            if isinstance(model, str) and model.startswith(LOCAL_DIR):
                model = f"{LOCAL_DIR}{local.parent}"
            pretrained = str(local) if pretrained is not None else None
        return {"model": model, "pretrained": pretrained}

    @property
    def size(self) -> int:
        """Side in pixels of the images that the model was made for."""
        size = self.preprocess_cfg["size"]
        return int(size[0] if isinstance(size, list | tuple) else size)

    @property
    def architecture(self) -> Architecture:
        """The image encoder's numbers, known without its weights."""
        vision = self.model_cfg["vision_cfg"]
        width = vision.get("width", 64)
        return Architecture(
            layers=tuple(vision["layers"]),
            width=width,
            output_dim=self.model_cfg["embed_dim"],
            heads=width * 32 // vision.get("head_width", 64),
            image_size=vision.get("image_size", 224),
        )


def resolve(model: str | nn.Module, pretrained: str | None, *, trusted: bool = True) -> ModelSource:
    """Find a model's configuration without loading or fetching any weights.

    Parameters
    ----------
    model : str or nn.Module
        A name that open_clip knows (``"RN50"``), ``"local-dir:PATH"``, ``"hf-hub:ORG/NAME"``, or a CLIP
        model or image tower of open_clip's.
    pretrained : str or None
        An open_clip tag, a checkpoint's path, or None for random weights. Ignored by the two schemes and
        by a model that is built already.
    trusted : bool
        Whether `pretrained` was named by the caller; see `ModelSource`.

    Raises
    ------
    InvalidInputError
        If the model is unknown or not a ModifiedResNet, or `pretrained` is neither tag nor file.
    WeightsUnavailableError
        If a folder lacks its configuration or its weights, or a hub cannot be reached.
    """
    if isinstance(model, nn.Module):
        return _from_module(model)
    if not isinstance(model, str) or model in ("", LOCAL_DIR, HF_HUB):
        raise InvalidInputError(
            f"model must be a name such as 'RN50' or 'local-dir:PATH'; got {shown(model)}"
        )
    if model.startswith(LOCAL_DIR):
        return _from_folder(_full_path(model[len(LOCAL_DIR) :], "the folder of 'local-dir:'"))
    if model.startswith(HF_HUB):
        repo = model[len(HF_HUB) :]
        if not HUB_NAME.fullmatch(repo) or len(repo) > 96 or ".." in repo or "--" in repo:
            raise InvalidInputError(
                f"model={shown(model)} names no repository of the hub; expected 'hf-hub:ORGANISATION/NAME'"
            )
        return replace(_from_config(fetch_config(repo), None), tag={"hf_hub": f"{repo}/"})
    import open_clip  # takes as long as torch; a folder or a file needs nothing of it

    name = model.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        known = ", ".join(other for other in open_clip.list_models() if other.startswith("RN"))
        raise InvalidInputError(
            f"unknown model {shown(model)}; choose one of {known}, or 'local-dir:PATH' for a folder of "
            "your own"
        )
    _check_resnet(config, model)
    size = config["vision_cfg"].get("image_size", 224)
    preprocess = merged_preprocessing(size, {})
    if pretrained is None:
        return ModelSource(config, preprocess, None, None)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if tag:
        return ModelSource(config, merged_preprocessing(size, {**tag, "size": None}), tag, None)
    path = _full_path(pretrained, "pretrained")
    if not _is_file(path):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InvalidInputError(
            f"pretrained={shown(pretrained)} is neither a file nor a tag of {model} (its tags: {tags}). "
            f"{ADVICE}"
        )
    return ModelSource(config, preprocess, None, path, trusted)


def load_visual(source: ModelSource, seed: int = 0) -> nn.Module:
    """Build open_clip's image encoder, in float32 on the CPU, in evaluation mode.

    Parameters
    ----------
    seed : int
        Of random weights, where `source` names none.

    Raises
    ------
    WeightsUnavailableError
        If the weights cannot be fetched or read, or do not fit the model.
    """
    from open_clip.modified_resnet import ModifiedResNet

    state = read_source(source)
    architecture = source.architecture
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds every GPU too.
        torch.default_generator.manual_seed(seed)
        visual: nn.Module = ModifiedResNet(
            layers=list(architecture.layers),
            output_dim=architecture.output_dim,
            heads=architecture.heads,
            image_size=architecture.image_size,
            width=architecture.width,
        )
    if state is not None:
        tower = {key[len("visual.") :]: value for key, value in state.items() if key.startswith("visual.")}
        load_strictly(visual, tower or state, source)
    return visual.float().eval().requires_grad_(False)


def _full_path(path: str, name: str) -> Path:
    """Return a path in full, with the home folder for ``~``."""
    checked = check_path(path, name)
    try:
        return checked.expanduser().absolute()
    except RuntimeError as error:
        raise InvalidInputError(
            f"{name} begins with '~', and there is no such home folder: {error}"
        ) from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder on the way that may not be entered
        return False


def _check_resnet(config: dict[str, Any], model: str) -> None:
    layers = config.get("vision_cfg", {}).get("layers")
    if not (isinstance(layers, list | tuple) and len(layers) == 4):
        raise InvalidInputError(
            f"{model!r} is not a CLIP ResNet (ModifiedResNet); choose RN50, RN101, RN50x4, RN50x16 or RN50x64"
        )


def _from_module(model: nn.Module) -> ModelSource:
    from open_clip.modified_resnet import ModifiedResNet

    visual: Any = getattr(model, "visual", model)
    if not isinstance(visual, ModifiedResNet):
        raise InvalidInputError(
            f"{type(model).__name__} is not a CLIP ResNet of open_clip's; its image tower must be a "
            "ModifiedResNet"
        )
    width, heads = visual.conv3.out_channels, visual.attnpool.num_heads
    layers = [len(layer) for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4)]
    vision = {
        "layers": layers,
        "width": width,
        "head_width": width * 32 // heads,
        "image_size": visual.image_size,
    }
    config = {"embed_dim": visual.output_dim, "vision_cfg": vision}
    preprocess = merged_preprocessing(visual.image_size, getattr(visual, "preprocess_cfg", {}))
    return ModelSource(config, preprocess, None, None, module=model)


def _from_folder(folder: Path) -> ModelSource:
    config = folder / "open_clip_config.json"
    if not os.path.lexists(config):  # what it is, reading it tells
        raise WeightsUnavailableError(f"{folder} has no open_clip_config.json. {ADVICE}")
    try:
        weights = find_weights(folder)
    except OSError as error:
        raise WeightsUnavailableError(
            f"{folder} cannot be read: {error.strerror or error}. {ADVICE}"
        ) from error
    if weights is None:
        raise WeightsUnavailableError(f"{folder} holds a configuration, but no weights file. {ADVICE}")
    return _from_config(config, weights)


def _from_config(config_path: Path, weights: Path | None) -> ModelSource:
    config, preprocess = read_config(config_path)
    merged = merged_preprocessing(config["vision_cfg"].get("image_size", 224), preprocess)
    source = ModelSource(config, merged, None, weights, config=config_path)
    try:
        source.architecture.check()
        Preparation(source.preprocess_cfg)
    except ValueError as error:
        raise WeightsUnavailableError(
            f"{config_path} describes no model that can be built: {error}. {ADVICE}"
        ) from error
    return source


def read_source(source: ModelSource) -> dict[str, torch.Tensor] | None:
    """Read a model's tensors by name; None where the weights are random.

    Raises
    ------
    WeightsUnavailableError
        If they cannot be fetched or read, or are not to be trusted.
    """
    if source.module is not None:
        return {key: value.detach().cpu() for key, value in source.module.state_dict().items()}
    if source.path is not None:
        if not source.trusted and is_torchscript(source.path) and not is_published(source.path):
            raise WeightsUnavailableError(
                f"{source.path} is a TorchScript archive, which can run code when it is opened, and none of "
                "OpenAI's. If you trust it, pass its path as StagedEncoder(…, pretrained=path)"
            )
        return read_state_dict(source.path)
    return read_state_dict(fetch_tag(source.tag)) if source.tag else None


def load_strictly(module: nn.Module, state: dict[str, torch.Tensor], source: ModelSource) -> None:
    """Fill a module with tensors that must be exactly its own.

    Raises
    ------
    WeightsUnavailableError
        If they are not.
    """
    expected = module.state_dict()
    state = {
        key: value.reshape(expected[key].shape)
        if key in expected and value.numel() == expected[key].numel() == 1
        else value
        for key, value in state.items()
    }
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise WeightsUnavailableError(
            f"the weights in {source.path or 'the fetched checkpoint'} do not fit "
            f"{source.architecture.describe()}: {' '.join(lines[1:3])[:300]} "
            "Pass the model's name that the weights were made for."
        ) from error
