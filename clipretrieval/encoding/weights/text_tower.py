"""Whether a model has a text tower that can be read, known without its weights or torch."""

from __future__ import annotations

from clipretrieval._util.checks import shown
from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.errors import InvalidInputError

__all__ = ["FOR_TEXTS", "check_text_tower"]

FOR_TEXTS = "search by text, text_weight and zero-shot answers need"
"""What a text tower is for, in every message of one that is missing."""


def check_text_tower(source: ModelSource) -> None:
    """Refuse a model without a text tower, or with one of another library.

    Raises
    ------
    InvalidInputError
        If texts cannot be encoded.
    """
    if source.module is not None:
        if not hasattr(source.module, "encode_text"):
            raise InvalidInputError(
                f"{type(source.module).__name__} has no text tower, which {FOR_TEXTS}; pass the whole CLIP "
                "model"
            )
        return
    if "timm" in source.model_cfg:
        raise InvalidInputError(
            f"{source.tower} has no text tower, which {FOR_TEXTS}; choose a CLIP model, such as 'ViT-B-32'"
        )
    text = source.model_cfg.get("text_cfg")
    if not isinstance(text, dict) or not text or text.get("hf_model_name"):
        raise InvalidInputError(
            f"the model's text tower is none of open_clip's own, which {FOR_TEXTS} "
            f"(model_cfg.text_cfg in {source.config}: {shown(text)})"
        )
