"""CLIP's published ResNets by the names and tags that open_clip gives them, known without loading it."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["KNOWN_TAGS", "known_config"]


class _Numbers(NamedTuple):
    layers: tuple[int, int, int, int]
    width: int
    image_size: int
    embed_dim: int
    text_width: int


_MODELS = {
    "RN50": _Numbers((3, 4, 6, 3), 64, 224, 1024, 512),
    "RN101": _Numbers((3, 4, 23, 3), 64, 224, 512, 512),
    "RN50x4": _Numbers((4, 6, 10, 6), 80, 288, 640, 640),
    "RN50x16": _Numbers((6, 8, 18, 8), 96, 384, 768, 768),
    "RN50x64": _Numbers((3, 15, 36, 10), 128, 448, 1024, 1024),
}
_TAGS = {"RN50": ("openai", "yfcc15m", "cc12m"), "RN101": ("openai", "yfcc15m")}
_QUICK = "-quickgelu"
"""Behind the name of a model whose text tower has QuickGELU whatever its weights."""

KNOWN_TAGS = {f"{name}{ending}": _TAGS.get(name, ("openai",)) for name in _MODELS for ending in ("", _QUICK)}
"""The tags of each model. The weights behind all of them want QuickGELU, and CLIP's own preprocessing."""


def known_config(name: str) -> dict[str, Any] | None:
    """Return a model's configuration as open_clip has it; None of one that is not known here."""
    numbers = _MODELS.get(name.removesuffix(_QUICK))
    if numbers is None:
        return None
    return {
        "embed_dim": numbers.embed_dim,
        **({"quick_gelu": True} if name.endswith(_QUICK) else {}),
        "vision_cfg": {
            "image_size": numbers.image_size,
            "layers": list(numbers.layers),
            "width": numbers.width,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": numbers.text_width,
            "heads": numbers.text_width // 64,
            "layers": 12,
        },
    }
