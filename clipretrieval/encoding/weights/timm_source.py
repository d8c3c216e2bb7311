"""Where a model of timm's comes from: its own registry, with how images are prepared for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipretrieval._util.checks import shown
from clipretrieval._util.dependencies import require
from clipretrieval.encoding.towers.unsupported import OWN_ENCODER
from clipretrieval.encoding.weights.download import ADVICE
from clipretrieval.encoding.weights.open_clip_config import merged_preprocessing
from clipretrieval.errors import InvalidInputError

__all__ = ["DEFAULT_TAG", "data_preprocessing", "square_side", "timm_config", "timm_transform"]

DEFAULT_TAG = "openai"
"""The tag that an encoder has when none is asked for: of a model of timm's, its own."""
_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}


def timm_config(
    name: str, pretrained: str | None
) -> tuple[dict[str, Any] | None, dict[str, Any], dict[str, Any] | None]:
    """Look a model up in timm.

    Parameters
    ----------
    name : str
        ``"resnet50"``, or with the tag of its weights ``"resnet50.a1_in1k"``.
    pretrained : str or None
        A tag, which the name may have as well, or "openai" for the name's own or timm's default: OpenAI's are
        ``"NAME.openai"``. None for random weights.

    Returns
    -------
    config : dict or None
        ``{"timm": {"name": …}}``; None of a model that timm does not have.
    preprocess : dict
        In open_clip's words.
    tag : dict or None
        timm's entry for the weights, as ``"cfg"``, and the ``"timm_tag"`` by which it is found.

    Raises
    ------
    InvalidInputError
        If the model has no weights of the tag.
    MissingDependencyError
        If timm, or torch, is not installed.
    """
    require("timm", f"timm:{name}", "run: pip install torch torchvision open_clip_torch")
    import timm
    from timm.models import get_pretrained_cfg, list_pretrained

    architecture, _, own = name.partition(".")
    if not timm.is_model(architecture):
        return None, {}, None
    tags = [each.partition(".")[2] for each in list_pretrained(f"{architecture}.*")]
    given = "" if pretrained in (None, DEFAULT_TAG) else str(pretrained)
    wanted = own or given
    if own and given not in ("", DEFAULT_TAG, own):
        raise InvalidInputError(
            f"the model's name says that its weights are {shown(own)}, and pretrained says {shown(given)}; "
            "leave one of them out"
        )
    if wanted and wanted not in tags:
        raise InvalidInputError(
            f"timm has no weights {shown(wanted)} of {architecture}, and no file is called so (its tags: "
            f"{', '.join(tags) or 'none'}). {ADVICE}"
        )
    found = get_pretrained_cfg(f"{architecture}.{wanted}" if wanted else architecture)
    if found is None:
        raise InvalidInputError(f"timm says nothing of how images are prepared for {architecture}")
    cfg = found.to_dict()
    if pretrained is not None and not cfg.get("hf_hub_id") and not cfg.get("url"):
        raise InvalidInputError(
            f"timm has no weights of {architecture}; pass pretrained=PATH for a checkpoint, or None "
            "for random weights"
        )
    named = f"{architecture}.{cfg['tag']}" if cfg.get("tag") else architecture
    tag = {"timm_tag": cfg.get("tag") or None, "cfg": cfg} if pretrained is not None else None
    return {"timm": {"name": named}}, data_preprocessing(cfg), tag


def data_preprocessing(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Say in open_clip's words how timm prepares images to evaluate a model.

    Parameters
    ----------
    cfg : mapping
        A model's ``pretrained_cfg``.

    Raises
    ------
    InvalidInputError
        If its images are no squares.
    """
    from timm.data import resolve_data_config

    data = resolve_data_config(pretrained_cfg=dict(cfg))
    side = square_side(data["input_size"][-2:], cfg)
    mode = data["crop_mode"]
    said = {
        "mean": tuple(data["mean"]),
        "std": tuple(data["std"]),
        "interpolation": data["interpolation"],
        "resize_mode": _MODES.get(mode, mode),
        "fill_color": [round(255 * value) for value in data["mean"]] if mode == "border" else 0,
    }
    return {**merged_preprocessing(side, said), "crop_pct": float(data["crop_pct"])}


def square_side(sides: Sequence[int], cfg: Mapping[str, Any]) -> int:
    """Return the side of a model's images.

    Parameters
    ----------
    sides : sequence of 2 int
        Height and width in pixels.
    cfg : mapping
        Its ``pretrained_cfg``.

    Raises
    ------
    InvalidInputError
        If they are no squares.
    """
    height, width = sides
    if height != width:
        raise InvalidInputError(
            f"{cfg.get('architecture') or 'this model'} takes images of {width} × {height} pixels, and "
            f"StagedEncoder makes squares. {OWN_ENCODER}"
        )
    return int(height)


def timm_transform(preprocess: Mapping[str, Any]) -> Any:
    """Return timm's own function from an image to a tensor for what `data_preprocessing` returned."""
    from timm.data import create_transform

    modes = {ours: theirs for theirs, ours in _MODES.items()}
    return create_transform(
        input_size=(3, preprocess["size"], preprocess["size"]),
        interpolation=preprocess["interpolation"],
        mean=preprocess["mean"],
        std=preprocess["std"],
        crop_pct=preprocess["crop_pct"],
        crop_mode=modes[preprocess["resize_mode"]],
        is_training=False,
    )
