"""CLIP's text tower: prompts to vectors that lie beside those of the images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from clipretrieval._util.checks import check_strings, check_text
from clipretrieval._util.forks import ForkLock
from clipretrieval.encoding.weights.checkpoints import OPENAI_ONLY, read_source
from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.encoding.weights.modules import build_clip, wants_quick_gelu
from clipretrieval.encoding.weights.open_clip_config import check_text_config
from clipretrieval.encoding.weights.tensor_fit import check_fit
from clipretrieval.encoding.weights.text_tower import FOR_TEXTS, check_text_tower
from clipretrieval.encoding.weights.tokenizers import Tokenizer, make_tokenizer
from clipretrieval.encoding.weights.tower_tensors import drawn_from
from clipretrieval.encoding.workers import torch_alone
from clipretrieval.errors import InvalidInputError, WeightsUnavailableError
from clipretrieval.types import FloatArray

__all__ = ["TextEncoder", "load_clip"]

_BATCH = 256
_VISUAL = "visual."


class TextEncoder:
    """The text tower of a CLIP model, loaded when it is first needed; safe under threads.

    Without the image encoder, which a `~clipretrieval.StagedEncoder` holds already.

    Parameters
    ----------
    seed : int
        Of random weights, as for the image encoder.
    """

    def __init__(self, source: ModelSource, seed: int, device: str) -> None:
        self._source, self._seed, self._device = source, seed, device
        self._lock = ForkLock()
        self._loaded: nn.Module | None = None
        self._read_tokenizer: Tokenizer | None = None

    def encode(self, prompts: Sequence[str]) -> FloatArray:
        """Encode texts, in float32.

        Parameters
        ----------
        prompts : sequence of str, length n

        Returns
        -------
        ndarray of float32, shape (n, dim of ``final``)
            As CLIP gives them: not of length one.

        Raises
        ------
        InvalidInputError
            If a prompt is no str, or longer than the model can read; or if the model has no text tower, or
            one whose tokens are unknown.
        WeightsUnavailableError
            If the weights cannot be had, or are those of an image tower alone.
        """
        texts = [prompts] if isinstance(prompts, str) else check_strings(prompts, "prompts")
        if not texts:
            raise InvalidInputError("prompts is empty; pass at least one")
        for text in texts:
            check_text(text, "a prompt", empty=True)
        clip, tokenizer = self._clip, self._tokenizer
        for text in texts:
            needed = tokenizer.count(text)
            if needed > tokenizer.context_length:
                raise InvalidInputError(
                    f"the prompt {text[:60]!r}… has {needed} tokens, and the model reads "
                    f"{tokenizer.context_length}; shorten it"
                )
        kind = torch.device(self._device).type
        with torch.inference_mode(), torch.autocast(kind, enabled=False), torch_alone():
            parts = [
                clip.encode_text(tokenizer(texts[start : start + _BATCH]).to(self._device))
                for start in range(0, len(texts), _BATCH)
            ]
        vectors: FloatArray = torch.cat(parts).float().cpu().numpy()
        return vectors

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before the softmax: the inverse of the learned temperature."""
        return float(self._clip.logit_scale.detach().float().exp())

    @property
    def _tokenizer(self) -> Tokenizer:
        if self._read_tokenizer is None:
            clip = self._clip
            vocabulary = getattr(clip, "vocab_size", None) or clip.text.vocab_size
            self._read_tokenizer = make_tokenizer(self._source, int(clip.context_length), int(vocabulary))
        return self._read_tokenizer

    @property
    def _clip(self) -> Any:
        with self._lock.current, torch_alone():
            if self._loaded is None:
                clip = load_clip(self._source, self._seed, text_only=True)
                self._loaded = clip.to(self._device)
            return self._loaded


def load_clip(
    source: ModelSource, seed: int = 0, quick_gelu: bool | None = None, *, text_only: bool = False
) -> nn.Module:
    """Build a CLIP model, with the activation its text tower was trained with.

    Parameters
    ----------
    quick_gelu : bool, optional
        Overrides what was found out.
    text_only : bool
        Leave the image tower out; ``visual`` is then the identity.

    Returns
    -------
    open_clip.CLIP, CustomTextCLIP or CoCa
        In float32 on the CPU, in evaluation mode.

    Raises
    ------
    InvalidInputError
        If the model has no text tower, or one of another library.
    WeightsUnavailableError
        If the weights cannot be had, do not fit, or are those of an image tower alone.
    """
    check_text_tower(source)
    if source.module is not None:
        return _copied(source.module, text_only).float().eval().requires_grad_(False)
    check_text_config(source.model_cfg, source.config)
    state = read_source(source)
    if quick_gelu is None:
        quick_gelu = wants_quick_gelu(source, state)
    with drawn_from(seed):
        # The image tower is built even where it is left out: random text weights come behind its own.
        try:
            clip: nn.Module = build_clip(source.model_cfg, quick_gelu)
        except Exception as error:  # fields that open_clip, of whatever version, does not know
            raise WeightsUnavailableError(
                f"the model_cfg in {source.config} describes no CLIP model that can be built: {error}"
            ) from error
    if text_only:
        clip.visual = nn.Identity()
    if state is not None:
        kept = {
            key: value
            for key, value in state.items()
            if key not in OPENAI_ONLY and not (text_only and key.startswith(_VISUAL))
        }
        if hasattr(clip, "text") and "token_embedding.weight" in kept:
            from open_clip.model import convert_to_custom_text_state_dict

            kept = convert_to_custom_text_state_dict(kept)
        if not any(key.removeprefix("text.") == "token_embedding.weight" for key in kept):
            raise WeightsUnavailableError(
                f"{source.path or 'the checkpoint'} holds an image tower alone; {FOR_TEXTS} "
                "the text tower as well: pass a checkpoint of the whole CLIP model"
            )
        _fill(clip, kept, source)
    return clip.float().eval().requires_grad_(False)


def _fill(module: nn.Module, state: dict[str, torch.Tensor], source: ModelSource) -> None:
    """Fill a module with tensors that must be exactly its own.

    Raises
    ------
    WeightsUnavailableError
        If they are not.
    """
    expected = module.state_dict()
    found = {
        key: value.reshape(expected[key].shape)
        if key in expected and value.numel() == expected[key].numel() == 1
        else value
        for key, value in state.items()
    }
    check_fit(found, {key: value.shape for key, value in expected.items()}, source)
    module.load_state_dict({key: found.get(key, value) for key, value in expected.items()})


def _copied(model: nn.Module, text_only: bool) -> nn.Module:
    """Copy a model that the caller built, which stays as it is."""
    spared = {id(model.visual): nn.Identity()} if text_only else {}
    return copy.deepcopy(model, spared)
