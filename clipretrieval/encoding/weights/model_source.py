"""Where a CLIP model comes from: open_clip's tags, checkpoint files, local folders, or a seed."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from clipretrieval._util.checks import check_path, shown
from clipretrieval._util.foreign import is_instance
from clipretrieval.encoding.preparation import Preparation
from clipretrieval.encoding.stages import Architecture
from clipretrieval.encoding.weights.download import ADVICE, fetch_config
from clipretrieval.encoding.weights.known_models import KNOWN_TAGS, known_config
from clipretrieval.encoding.weights.open_clip_config import merged_preprocessing, read_config
from clipretrieval.errors import InvalidInputError, WeightsUnavailableError

if TYPE_CHECKING:
    import torch

__all__ = ["HF_HUB", "LOCAL_DIR", "ONNX", "ModelSource", "resolve"]

LOCAL_DIR, HF_HUB, ONNX = "local-dir:", "hf-hub:", "onnx:"
"""What comes before a model's folder, its name at the hub, or an exported encoder's file."""
HUB_NAME = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9_])?(/[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?)?", re.ASCII)
"""What the hub takes for a repository's name; it is looked for in the cache as a path."""
_WEIGHT_FILES = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")


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
        When the weights are to be fetched: open_clip's entry for them, or the ``model`` and the ``tag`` by
        which it is found.
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
    module: Any = None
    config: Path | str = "open_clip's own configuration"

    def arguments(self, model: str | torch.nn.Module, pretrained: str | None) -> dict[str, Any]:
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


def resolve(model: str | torch.nn.Module, pretrained: str | None, *, trusted: bool = True) -> ModelSource:
    """Find a model's configuration without loading or fetching any weights.

    Parameters
    ----------
    model : str or torch.nn.Module
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
    if is_instance(model, "torch.nn", "Module"):
        return _from_module(cast("torch.nn.Module", model))
    if not isinstance(model, str) or model in ("", LOCAL_DIR, HF_HUB):
        raise InvalidInputError(
            f"model must be a name such as 'RN50' or 'local-dir:PATH'; got {shown(model)}"
        )
    if model.startswith(ONNX):
        raise InvalidInputError(
            f"{model!r} names an exported encoder, which has one stage: open it with OnnxEncoder(path), or "
            "pass the model that it was exported from where several are needed"
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
    name = model.replace("/", "-")
    changed = "open_clip" in sys.modules  # a program may have given it models of its own
    config = (None if changed else known_config(name)) or _config_of_open_clip(name)
    if config is None:
        import open_clip

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
    spelled = pretrained.lower().replace("-", "_")  # as open_clip reads tags
    if spelled in KNOWN_TAGS.get(name, ()):
        tag = {"model": name, "tag": spelled, "quick_gelu": True}
        return ModelSource(config, preprocess, tag, None)
    path = _full_path(pretrained, "pretrained")
    if not _is_file(path):
        import open_clip

        tag = open_clip.get_pretrained_cfg(name, pretrained)
        if tag:
            return ModelSource(config, merged_preprocessing(size, {**tag, "size": None}), tag, None)
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InvalidInputError(
            f"pretrained={shown(pretrained)} is neither a file nor a tag of {model} (its tags: {tags}). "
            f"{ADVICE}"
        )
    return ModelSource(config, preprocess, None, path, trusted)


def _config_of_open_clip(name: str) -> dict[str, Any] | None:
    import open_clip  # takes as long as torch

    config: dict[str, Any] | None = open_clip.get_model_config(name)
    return config


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


def _from_module(model: torch.nn.Module) -> ModelSource:
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
        weights = _find_weights(folder)
    except OSError as error:
        raise WeightsUnavailableError(
            f"{folder} cannot be read: {error.strerror or error}. {ADVICE}"
        ) from error
    if weights is None:
        raise WeightsUnavailableError(f"{folder} holds a configuration, but no weights file. {ADVICE}")
    return _from_config(config, weights)


def _find_weights(folder: Path) -> Path | None:
    """Prefer safetensors, then open_clip's own file names, then the alphabet."""
    order = {".safetensors": 0, ".bin": 1, ".pt": 2, ".pth": 3}
    found = [path for path in folder.iterdir() if path.suffix in order and path.is_file()]
    rank = {name: place for place, name in enumerate(_WEIGHT_FILES)}
    found.sort(key=lambda path: (order[path.suffix], rank.get(path.stem, len(rank)), path.name))
    return found[0] if found else None


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
