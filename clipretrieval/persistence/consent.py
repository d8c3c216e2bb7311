"""What a saved classifier, which anybody may have sent, does not get without being asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from clipretrieval.encoding.weights.model_source import LOCAL_DIR, ONNX, TIMM
from clipretrieval.errors import InvalidInputError

__all__ = ["asks_for", "check_model", "is_network_path"]


def asks_for(folder: Path, what: str, why: str) -> InvalidInputError:
    """Return the refusal of what a saved classifier asks for, with the two ways on."""
    return InvalidInputError(
        f"the classifier in {folder} asks for {what}, and {why}. If you trust whoever saved it, pass "
        "allow_remote=True; or make it yourself and pass it: "
        "RetrievalClassifier.load(path, encoder, store=your_store)"
    )


def check_model(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse an encoder whose model or weights are fetched from wherever a saved classifier says.

    The names and tags of open_clip's and timm's own catalogues, and local files, are what the library reads
    anyway.

    Parameters
    ----------
    config : mapping
        As an encoder's ``config()`` returns it.
    folder : Path
        The saved classifier's.

    Raises
    ------
    InvalidInputError
    """
    model, pretrained = str(config.get("model")), str(config.get("pretrained") or "")
    path = model.removeprefix(LOCAL_DIR).removeprefix(ONNX).removeprefix(TIMM)
    if (path == model and ":" in model) or "://" in pretrained:
        raise asks_for(folder, f"the model {model!r} ({pretrained or 'no tag'})", "it is fetched from a host")
    if model.startswith(ONNX) and not Path(path).is_absolute():  # whatever lies where the program was started
        raise asks_for(folder, f"the encoder {path!r}", "it does not say in which folder that lies")
    if is_network_path(path) or is_network_path(pretrained):
        raise asks_for(folder, f"the model {model!r} ({pretrained or 'no tag'})", "it is at another machine")


def is_network_path(path: str) -> bool:
    r"""Tell whether Windows would look for a path at another machine, as for ``\\server\share``."""
    return Path(path).drive.startswith("\\\\") or (
        path.startswith("\\\\") and bool(PureWindowsPath(path).drive)
    )
