"""Checkpoint files: recognising and reading them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from clipretrieval._util.checks import shown
from clipretrieval._util.files import file_sha256
from clipretrieval.encoding.weights.download import fetch_tag
from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.errors import WeightsUnavailableError

__all__ = [
    "OPENAI_ONLY",
    "is_openai",
    "is_published",
    "is_torchscript",
    "read_source",
    "read_state_dict",
]

OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")
"""Entries that only OpenAI's own checkpoints have."""
_WRAPPERS = ("state_dict", "model")
"""Under what training scripts keep a state dict, beside the epoch and the like."""


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors by name: safetensors, a state dict, or a TorchScript archive.

    Raises
    ------
    WeightsUnavailableError
        If the file is none of these.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        elif is_torchscript(path):
            with warnings.catch_warnings():
                # TorchScript is deprecated, yet it is the form in which OpenAI publishes its weights.
                warnings.simplefilter("ignore")
                content = dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsUnavailableError:
        raise
    except Exception as error:
        # Torch and safetensors raise half a dozen unrelated types for a damaged or foreign file.
        if not (isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error)):
            raise _unreadable(path, error) from error
        raise WeightsUnavailableError(
            f"{path} holds more than tensors, such as a whole pickled model, and is not opened: that can run "
            "code. Save the tensors alone: torch.save(model.state_dict(), path)"
        ) from error
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise WeightsUnavailableError(f"{path} holds no state dict (a dict of tensors).")
    if all(str(key).startswith("module.") for key in content):
        content = {key[len("module.") :]: value for key, value in content.items()}
    try:
        sizes = {key: torch.as_tensor(content[key]) for key in OPENAI_ONLY if key in content}
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise WeightsUnavailableError(
            f"{path} holds no number for one of {', '.join(OPENAI_ONLY)}: {error}"
        ) from error
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    for key, value in tensors.items():
        if value.is_sparse or value.is_quantized or value.is_complex() or value.is_meta:
            raise WeightsUnavailableError(
                f"{path} holds {key!r} as a tensor of another kind than plain numbers"
            )
    if not tensors:  # without any, timm would fetch its own
        raise WeightsUnavailableError(
            f"{path} holds no tensors by name, but {shown(sorted(map(str, content))[:5])}. Save a state "
            "dict: torch.save(model.state_dict(), path)"
        )
    return tensors | sizes


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


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, whatever its name.

    Raises
    ------
    WeightsUnavailableError
        If it is a damaged archive.
    """
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise _unreadable(path, error) from error


def is_published(path: Path) -> bool:
    """Whether a file is one that OpenAI published; its addresses carry the SHA-256 of what they give.

    Raises
    ------
    WeightsUnavailableError
        If the file cannot be read, or is large and nearly all of it is holes.
    """
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    import open_clip
    from open_clip import pretrained as catalogue

    return any(
        digest in (catalogue.get_pretrained_url(name, "openai") or "") for name in open_clip.list_models()
    )


def is_openai(state: dict[str, torch.Tensor]) -> bool:
    """Whether tensors are OpenAI's: by their extra entries, or half-precision beside float32 norms."""
    if any(key in state for key in OPENAI_ONLY):
        return True
    convolution = state.get("visual.conv1.weight")
    norm = state.get("visual.bn1.weight", state.get("visual.ln_pre.weight"))
    if convolution is None or norm is None:
        return False
    return convolution.dtype == torch.float16 and norm.dtype == torch.float32


def _unreadable(path: Path, error: Exception) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"{path} cannot be read as a checkpoint: {(str(error) or repr(error)).splitlines()[0]}. "
        "Expected safetensors, a state dict of tensors only, or OpenAI's TorchScript archive."
    )
