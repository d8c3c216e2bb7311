"""Where a CLIP model comes from: open_clip's tags, checkpoint files, local folders, or a seed."""

from __future__ import annotations

import copy
import difflib
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from clipretrieval._util.checks import check_path, shown
from clipretrieval._util.files import read_file
from clipretrieval._util.foreign import is_instance
from clipretrieval._util.text import parse_json, shortened
from clipretrieval.encoding.preparation import Preparation
from clipretrieval.encoding.stages import Architecture
from clipretrieval.encoding.weights.download import ADVICE, fetch_config
from clipretrieval.encoding.weights.known_models import KNOWN_TAGS, known_config
from clipretrieval.encoding.weights.open_clip_config import (
    MOST_BYTES,
    is_resnet,
    merged_preprocessing,
    read_config,
)
from clipretrieval.errors import InvalidInputError, WeightsUnavailableError

if TYPE_CHECKING:
    import torch

__all__ = ["HF_HUB", "LOCAL_DIR", "ONNX", "TIMM", "ModelSource", "resolve"]

LOCAL_DIR, HF_HUB, TIMM, ONNX = "local-dir:", "hf-hub:", "timm:", "onnx:"
"""What comes before a model's folder, its name at the hub or in timm, or an exported encoder's file."""
HUB_NAME = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9_])?(/[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?)?", re.ASCII)
"""What the hub takes for a repository's name; it is looked for in the cache as a path."""
_ALIKE = 0.75
"""Of names that are so alike, one is probably meant; otherwise those with the first word are told too."""
_AGREED = ("mean", "std", "interpolation", "resize_mode")
_WEIGHT_FILES = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")


@dataclass(frozen=True)
class ModelSource:
    """A model's configuration, and where its weights are to come from.

    Attributes
    ----------
    model_cfg : dict
        open_clip's ``embed_dim``, ``vision_cfg``, ``text_cfg``, perhaps ``quick_gelu``; of a model of timm's
        alone what `timm_config` returns.
    preprocess_cfg : dict
        open_clip's ``size``, ``mean``, ``std``, ``interpolation``, ``resize_mode``, …; timm's ``crop_pct``.
    tag : dict or None
        When the weights are to be fetched: open_clip's entry for them, or the ``model`` and the ``tag`` by
        which it is found.
    path : Path or None
        The checkpoint, when it is at hand. With neither tag nor path the weights are random.
    trusted : bool
        Whether the caller named the checkpoint. A TorchScript archive can run code when it is opened, so
        one that comes from elsewhere (a model's folder, a saved classifier) is opened only if it is one
        of OpenAI's own.
    module : nn.Module or None
        A model of open_clip's or timm's that the caller built, or its image tower; its weights are copied.
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
    def tower(self) -> str:
        """What the image tower is, for messages."""
        if self.module is not None:
            return type(getattr(self.module, "visual", self.module)).__name__
        if self.is_resnet:
            return self.architecture.describe()
        if "timm" in self.model_cfg:
            return str(self.model_cfg["timm"]["name"])
        vision = self.model_cfg["vision_cfg"]
        numbers = ", ".join(
            f"{key}={vision[key]}" for key in ("patch_size", "width", "layers") if key in vision
        )
        return str(vision.get("timm_model_name") or f"VisionTransformer({numbers})")

    @property
    def size(self) -> int:
        """Side in pixels of the images that the model was made for."""
        size = self.preprocess_cfg["size"]
        return int(size[0] if isinstance(size, list | tuple) else size)

    def transform(self) -> Any:
        """Return what prepares an image for the library's own module: its own function, images to tensors."""
        if "crop_pct" in self.preprocess_cfg:
            from clipretrieval.encoding.weights.timm_source import timm_transform

            return timm_transform(self.preprocess_cfg)
        from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(**self.preprocess_cfg), is_train=False)

    @property
    def is_resnet(self) -> bool:
        """Whether the image tower is one of CLIP's ResNets."""
        return is_resnet(self.model_cfg)

    @property
    def architecture(self) -> Architecture:
        """The numbers of one of CLIP's ResNets, known without its weights."""
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
        A name that open_clip knows (``"RN50"``), ``"timm:NAME"``, ``"local-dir:PATH"``,
        ``"hf-hub:ORG/NAME"``, or a model or image tower of open_clip's or timm's.
    pretrained : str or None
        An open_clip tag, a checkpoint's path, or None for random weights. Ignored by the two schemes and
        by a model that is built already.
    trusted : bool
        Whether `pretrained` was named by the caller; see `ModelSource`.

    Raises
    ------
    InvalidInputError
        If the model is unknown, or `pretrained` is neither tag nor file.
    WeightsUnavailableError
        If a folder lacks its configuration or its weights, or a hub cannot be reached.
    """
    if is_instance(model, "torch.nn", "Module"):
        return _from_module(cast("torch.nn.Module", model))
    if not isinstance(model, str) or model in ("", LOCAL_DIR, HF_HUB):
        raise InvalidInputError(
            f"model must be a name such as 'RN50', 'timm:NAME' or 'local-dir:PATH'; got {shown(model)}"
        )
    if model.startswith(ONNX):
        raise InvalidInputError(
            f"{model!r} names an exported encoder, which has one stage: open it with OnnxEncoder(path), or "
            "pass the model that it was exported from where several are needed"
        )
    if model.startswith(TIMM):
        return _from_timm(model, pretrained, trusted)
    if model.startswith(LOCAL_DIR):
        return _from_folder(_full_path(model[len(LOCAL_DIR) :], "the folder of 'local-dir:'"))
    if model.startswith(HF_HUB):
        repo = model[len(HF_HUB) :]
        if not HUB_NAME.fullmatch(repo) or len(repo) > 96 or ".." in repo or "--" in repo:
            raise InvalidInputError(
                f"model={shown(model)} names no repository of the hub; expected 'hf-hub:ORGANISATION/NAME'"
            )
        _refuse_timm_repository(repo)
        return replace(_from_config(fetch_config(repo), None), tag={"hf_hub": f"{repo}/"})
    name = model.replace("/", "-")
    changed = "open_clip" in sys.modules  # a program may have given it models of its own
    config = (None if changed else known_config(name)) or _config_of_open_clip(name)
    if config is None:
        raise _unknown(model)
    config = copy.deepcopy(config)
    size = config["vision_cfg"].get("image_size", 224)
    preprocess = merged_preprocessing(size, {} if is_resnet(config) else _usual_preprocessing(name))
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


def _usual_preprocessing(name: str) -> dict[str, Any]:
    """Return how images are prepared for all published weights of a model, if they agree."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    said = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    ways = [{key: cfg.get(key) for key in _AGREED} for cfg in said]
    return ways[0] if ways and all(way == ways[0] for way in ways) else {}


def _refuse_timm_repository(repo: str) -> None:
    """Refuse a repository that holds a model in timm's form, which has a name of its own here."""
    organisation, _, name = repo.partition("/")
    if organisation != "timm":
        return
    import timm

    if timm.is_model(name.partition(".")[0]):
        raise InvalidInputError(
            f"'{HF_HUB}{repo}' is in timm's form, not open_clip's; pass {f'{TIMM}{name}'!r}, which has the "
            "same weights"
        )


def _unknown(model: str) -> InvalidInputError:
    """Say which models there are whose names are like this one."""
    import open_clip
    import timm

    ours = {name.lower(): name for name in open_clip.list_models()}
    timms = {name.lower(): f"{TIMM}{name}" for name in timm.list_models()}
    asked = model.lower().removeprefix(TIMM)
    near = [ours[name] for name in difflib.get_close_matches(asked, ours, 4)]
    theirs = [timms[name] for name in difflib.get_close_matches(asked, timms, 4, cutoff=_ALIKE)]
    near = theirs + near if model.startswith(TIMM) else near + theirs
    if not near:
        part = re.split(r"[^a-z0-9]", asked)[0]
        near = [shown_as for name, shown_as in {**timms, **ours}.items() if len(part) > 3 and part in name]
    names = (
        f"near it are {', '.join(near[:5])}"
        if near
        else "there are RN50, ViT-B-32, ViT-B-16-SigLIP and others"
    )
    return InvalidInputError(
        f"unknown model {shown(model)}; {names}. open_clip.list_models() lists open_clip's "
        "names, timm.list_models() those that go behind 'timm:', and 'local-dir:PATH' takes a folder of your "
        "own"
    )


def _from_timm(model: str, pretrained: str | None, trusted: bool) -> ModelSource:
    """Find a model of timm's; what names no file is a tag, or the default, which stands for its own."""
    from clipretrieval.encoding.weights.timm_source import DEFAULT_TAG, timm_config

    path = None
    if pretrained not in (None, DEFAULT_TAG) and _is_file(found := _full_path(str(pretrained), "pretrained")):
        path = found
    config, preprocess, tag = timm_config(model[len(TIMM) :], None if path else pretrained)
    if config is None:
        raise _unknown(model)
    return ModelSource(
        config, preprocess, None if path else tag, path, trusted, config="timm's own configuration"
    )


def _from_module(model: torch.nn.Module) -> ModelSource:
    from open_clip.modified_resnet import ModifiedResNet

    visual: Any = getattr(model, "visual", model)
    if not isinstance(visual, ModifiedResNet):
        return _from_other_module(model, visual)
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


def _from_other_module(model: torch.nn.Module, visual: Any) -> ModelSource:
    from clipretrieval.encoding.weights.timm_source import data_preprocessing, square_side

    size = getattr(visual, "image_size", None)
    said = getattr(visual, "preprocess_cfg", None) or {}
    if size is None and getattr(visual, "pretrained_cfg", None):  # of timm's, built alone
        preprocess = data_preprocessing(visual.pretrained_cfg)
        built = getattr(getattr(visual, "patch_embed", None), "img_size", None)  # with another size
        if built:
            preprocess["size"] = square_side(built, visual.pretrained_cfg)
        return ModelSource({"timm": {}}, preprocess, None, None, module=model)
    return ModelSource({}, merged_preprocessing(size or 224, said), None, None, module=model)


def _from_folder(folder: Path) -> ModelSource:
    config = folder / "open_clip_config.json"
    if not os.path.lexists(config):  # what it is, reading it tells
        raise WeightsUnavailableError(f"{folder} has no open_clip_config.json{_of_timm(folder)}. {ADVICE}")
    try:
        weights = _find_weights(folder)
    except OSError as error:
        raise WeightsUnavailableError(
            f"{folder} cannot be read: {error.strerror or error}. {ADVICE}"
        ) from error
    if weights is None:
        raise WeightsUnavailableError(f"{folder} holds a configuration, but no weights file. {ADVICE}")
    return _from_config(config, weights)


def _of_timm(folder: Path) -> str:
    """Tell what to do with a folder that timm has saved; nothing of any other."""
    try:
        content = parse_json(read_file(folder / "config.json", MOST_BYTES))
        weights = _find_weights(folder)
    except (OSError, ValueError):
        return ""
    name = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(name, str) or weights is None:
        return ""
    told = f"StagedEncoder({f'{TIMM}{name}'!r}, pretrained={str(weights)!r})"
    return f", and is a folder of timm's: pass {shortened(told, 300)}"


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
        if source.is_resnet:
            source.architecture.check()
        Preparation(source.preprocess_cfg)
    except ValueError as error:
        raise WeightsUnavailableError(
            f"{config_path} describes no model that can be built: {error}. {ADVICE}"
        ) from error
    return source
