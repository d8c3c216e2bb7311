"""Texts to the tokens that a text tower reads: CLIP's own, or those of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clipretrieval._util.checks import shown
from clipretrieval._util.dependencies import require
from clipretrieval.encoding.weights.download import check_hub
from clipretrieval.encoding.weights.model_source import HUB_NAME, ModelSource
from clipretrieval.encoding.weights.text_tower import FOR_TEXTS
from clipretrieval.errors import InvalidInputError, WeightsUnavailableError

if TYPE_CHECKING:
    import torch

__all__ = ["Tokenizer", "make_tokenizer"]


class Tokenizer(Protocol):
    """Turns texts into tokens."""

    context_length: int

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the tokens of each text, shape (n, context_length)."""
        ...

    def count(self, text: str) -> int:
        """Count the tokens of a text, its marks included."""
        ...


class _ClipTokenizer:
    def __init__(self, length: int) -> None:
        self._tokenizer, self.context_length = _simple(length), length

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        return self._tokenizer(list(texts))  # type: ignore[no-any-return]

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text)) + 2  # the marks of start and end


class _HubTokenizer:
    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer, self.context_length = tokenizer, length

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        return self._tokenizer(list(texts))  # type: ignore[no-any-return]

    def count(self, text: str) -> int:
        return len(self._tokenizer.tokenizer(self._tokenizer.clean_fn(text)).input_ids)


def make_tokenizer(source: ModelSource, length: int, vocabulary: int) -> Tokenizer:
    """Return what makes the tokens of a model's text tower.

    Parameters
    ----------
    length, vocabulary : int
        How many tokens the text tower reads, and knows.

    Raises
    ------
    InvalidInputError
        If the tower does not know the tokens.
    MissingDependencyError
        If the tokenizer is one of the hub's, and transformers is not installed.
    WeightsUnavailableError
        If it cannot be fetched.
    """
    text = source.model_cfg.get("text_cfg") or {}
    name = text.get("hf_tokenizer_name")
    if name:
        return _HubTokenizer(_from_hub(source, name, text, length), length)
    tokenizer = _ClipTokenizer(length)
    made = _simple(length).vocab_size
    if vocabulary != made:
        raise InvalidInputError(
            f"the model's text tower knows {vocabulary} tokens and CLIP's tokenizer makes {made}; "
            f"{FOR_TEXTS} a text tower that reads CLIP's own tokens, or one whose configuration "
            "names a tokenizer"
        )
    return tokenizer


def _from_hub(source: ModelSource, name: Any, text: dict[str, Any], length: int) -> Any:
    require("transformers", f"the tokenizer {name}", "run: pip install transformers")
    from open_clip.tokenizer import HFTokenizer

    folder = source.config.parent if isinstance(source.config, Path) else None
    local = folder is not None and (folder / "tokenizer_config.json").is_file()
    if not local and (not isinstance(name, str) or not HUB_NAME.fullmatch(name)):
        raise InvalidInputError(
            f"model_cfg.text_cfg.hf_tokenizer_name in {source.config} must be a repository of the hub; "
            f"found {shown(name)}"
        )
    options = {"context_length": length, "tokenizer_mode": text.get("tokenizer_mode")}
    options |= text.get("tokenizer_kwargs") or {}
    place = str(folder) if local else name
    try:
        try:
            return HFTokenizer(place, **options, local_files_only=True)
        except (OSError, ValueError):
            if local:
                raise
            check_hub()
            return HFTokenizer(place, **options)
    except Exception as error:  # transformers, tokenizers and the hub's client raise their own families
        reason = (str(error) or repr(error)).splitlines()[0]
        raise WeightsUnavailableError(
            f"the tokenizer {place!r} could not be had: {reason}. Fetch it where there is a network, or put "
            "its files (tokenizer_config.json and those beside it) into the model's folder"
        ) from error


@cache
def _simple(length: int) -> Any:
    """Make CLIP's tokenizer; reading its vocabulary takes half a second."""
    import open_clip

    return open_clip.SimpleTokenizer(context_length=length)
