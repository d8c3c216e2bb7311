"""What an ``open_clip_config.json`` says, checked field by field: it may come from anybody."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import shown
from clipretrieval._util.files import read_file
from clipretrieval._util.text import parse_json
from clipretrieval.encoding.stages import LARGEST_SIDE
from clipretrieval.encoding.weights.download import ADVICE
from clipretrieval.errors import WeightsUnavailableError

__all__ = ["MOST_BYTES", "check_text_config", "is_resnet", "merged_preprocessing", "read_config"]

MOST_BYTES = 2**20
"""Of a configuration; real ones have some hundred."""
_PREPROCESSING: Mapping[str, Any] = {
    "mode": "RGB",
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
"""CLIP's own, which open_clip takes where a model does not say."""
INTERPOLATIONS = ("bicubic", "bilinear", "random")
RESIZE_MODES = ("shortest", "longest", "squash")

Check = Callable[[Any], bool]


def read_config(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a model's configuration.

    Parameters
    ----------
    file : Path
        An ``open_clip_config.json``.

    Returns
    -------
    model_cfg, preprocess_cfg : dict
        As open_clip takes them; the second may be empty.

    Raises
    ------
    WeightsUnavailableError
        If the file cannot be read, or a field is missing or holds what no model can be built of; the message
        names the file and the field.
    """
    content = _read_json(file)
    fields = _Fields(file)
    model = fields.mapping(content, "model_cfg")
    vision = fields.mapping(model, "vision_cfg", "model_cfg.")
    inside = "model_cfg.vision_cfg."
    if is_resnet(model):
        _check_resnet(fields, inside, vision)
    elif vision.get("timm_model_name") is None:
        _check_transformer(fields, inside, vision)
    else:
        _check_timm(fields, inside, vision)
    fields.whole("model_cfg.embed_dim", model.get("embed_dim"), 1, 65536)
    fields.one_of("model_cfg.quick_gelu", model.get("quick_gelu", False), (True, False))
    preprocess = fields.mapping(content, "preprocess_cfg") if "preprocess_cfg" in content else {}
    step = 32 if is_resnet(model) else 1
    _check_preprocess(fields, preprocess, step)
    return model, preprocess


def is_resnet(model: Mapping[str, Any]) -> bool:
    """Tell whether a ``model_cfg`` is one of CLIP's ResNets, whose ``layers`` are four numbers."""
    vision = model.get("vision_cfg", {})
    layers = vision.get("layers")
    return isinstance(layers, list | tuple) and len(layers) == 4 and vision.get("timm_model_name") is None


def _check_resnet(fields: _Fields, inside: str, vision: dict[str, Any]) -> None:
    for place, blocks in enumerate(vision["layers"]):
        fields.whole(f"{inside}layers[{place}]", blocks, 1, 100)
    width = fields.whole(f"{inside}width", vision.get("width", 64), 2, 1024)
    if width % 2:
        fields.refuse(f"{inside}width", width, "an even number")
    head = fields.whole(f"{inside}head_width", vision.get("head_width", 64), 1, 32 * 1024)
    heads = width * 32 // head
    if not heads or width * 32 % heads:
        fields.refuse(f"{inside}head_width", head, f"a divisor of 32 × the width, {width * 32}")
    vision["image_size"] = fields.side(f"{inside}image_size", vision.get("image_size", 224), 32)


def _check_transformer(fields: _Fields, inside: str, vision: dict[str, Any]) -> None:
    fields.whole(f"{inside}layers", vision.get("layers", 12), 1, 200)
    width = fields.whole(f"{inside}width", vision.get("width", 768), 1, 16384)
    head = fields.whole(f"{inside}head_width", vision.get("head_width", 64), 1, 16384)
    if width % head:
        fields.refuse(f"{inside}head_width", head, f"a divisor of the width, {width}")
    patch = vision.get("patch_size", 16)
    patch = patch[0] if isinstance(patch, list) and patch else patch
    patch = fields.whole(f"{inside}patch_size", patch, 1, LARGEST_SIDE)
    vision["image_size"] = fields.side(f"{inside}image_size", vision.get("image_size", 224), patch)
    ratio = vision.get("mlp_ratio", 4.0)
    if not _between(ratio, 1e-3, 100):
        fields.refuse(f"{inside}mlp_ratio", ratio, "a number up to 100")
    for name in ("attn_pooler_queries", "attn_pooler_heads"):
        fields.whole(f"{inside}{name}", vision.get(name, 8), 1, 4096)


def _check_timm(fields: _Fields, inside: str, vision: dict[str, Any]) -> None:
    import timm

    name = vision["timm_model_name"]
    if not isinstance(name, str) or not timm.is_model(name):
        fields.refuse(f"{inside}timm_model_name", name, "a model that timm has (see timm.list_models())")
    vision["timm_model_pretrained"] = False  # the weights are beside it, and timm's own would be fetched
    vision["image_size"] = fields.side(f"{inside}image_size", vision.get("image_size", 224), 1)


def merged_preprocessing(size: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return open_clip's ``size``, ``mean``, ``std``, …: what a model says, and CLIP's own where it does not.

    Parameters
    ----------
    size : int, or sequence of two equal ones
        Of the model's images, if it says no other.
    said : mapping
        May have other keys and values that are None, which say nothing.
    """
    merged = {"size": size, **_PREPROCESSING}
    merged.update((key, value) for key, value in said.items() if key in merged and value is not None)
    return merged


def check_text_config(model: Mapping[str, Any], where: Path | str) -> None:
    """Refuse the numbers of a text tower of which none can be built.

    Raises
    ------
    WeightsUnavailableError
    """
    fields, text = _Fields(where), model["text_cfg"]
    inside = "model_cfg.text_cfg."
    fields.whole(f"{inside}context_length", text.get("context_length", 77), 3, 4096)
    fields.whole(f"{inside}vocab_size", text.get("vocab_size", 49408), 1, 1_000_000)
    width = fields.whole(f"{inside}width", text.get("width", 512), 1, 16384)
    heads = fields.whole(f"{inside}heads", text.get("heads", 8), 1, 1024)
    if width % heads:
        fields.refuse(f"{inside}heads", heads, f"a divisor of the width, {width}")
    fields.whole(f"{inside}layers", text.get("layers", 12), 1, 200)


def _check_preprocess(fields: _Fields, preprocess: dict[str, Any], step: int) -> None:
    inside = "preprocess_cfg."
    if "size" in preprocess:
        fields.side(f"{inside}size", preprocess["size"], step)
    for name in ("mean", "std"):
        values = preprocess.get(name, [1.0, 1.0, 1.0])
        least = -1e6 if name == "mean" else 1e-6
        if (
            not isinstance(values, list)
            or len(values) != 3
            or not all(_between(v, least, 1e6) for v in values)
        ):
            kind = "numbers" if name == "mean" else "positive numbers"
            fields.refuse(f"{inside}{name}", values, f"three {kind}")
    fields.one_of(f"{inside}interpolation", preprocess.get("interpolation", "bicubic"), INTERPOLATIONS)
    fields.one_of(f"{inside}resize_mode", preprocess.get("resize_mode", "shortest"), RESIZE_MODES)
    fields.one_of(f"{inside}mode", preprocess.get("mode", "RGB"), ("RGB",))
    fill = preprocess.get("fill_color", 0)
    for value in fill if isinstance(fill, list) and len(fill) == 3 else [fill]:
        fields.whole(f"{inside}fill_color", value, 0, 255)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_file(file, MOST_BYTES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WeightsUnavailableError(
            f"{file} cannot be read as an open_clip configuration: {reason}. {ADVICE}"
        ) from error
    if not isinstance(content, dict):
        raise WeightsUnavailableError(f"{file} must hold a JSON object; found {shown(content)}. {ADVICE}")
    return content


class _Fields:
    """Checks fields, and names the file and the field in every error."""

    def __init__(self, file: Path | str) -> None:
        self._file = file

    def refuse(self, field: str, value: Any, wanted: str) -> None:
        raise WeightsUnavailableError(
            f"{field} in {self._file} must be {wanted}; found {shown(value)}. {ADVICE}"
        )

    def mapping(self, holder: Mapping[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
        found = holder.get(name)
        if not isinstance(found, dict):
            self.refuse(prefix + name, found, "a JSON object")
        kept: dict[str, Any] = found  # type: ignore[assignment]
        return kept

    def whole(self, field: str, value: Any, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(field, value, f"a whole number from {least} to {most}")
        return int(value)

    def side(self, field: str, value: Any, step: int) -> int:
        """Check the side of square images; open_clip writes it as a number or as two equal ones."""
        least = 32 if step == 1 else step
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value % step
            or not least <= value <= LARGEST_SIDE
        ):
            kind = "a whole number" if step == 1 else f"a multiple of {step}"
            self.refuse(field, value, f"{kind} from {least} to {LARGEST_SIDE}, for images are square")
        return int(value)

    def one_of(self, field: str, value: Any, choices: tuple[Any, ...]) -> None:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
            self.refuse(field, value, f"one of {', '.join(map(repr, choices))}")


def _between(value: Any, least: float, most: float) -> bool:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and abs(value) < 1e300 and math.isfinite(value) and least <= value <= most
