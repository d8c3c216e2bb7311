"""Packages that a part of the library needs and the rest does without."""

from __future__ import annotations

import importlib
from typing import Any

from clipretrieval.errors import MissingDependencyError

__all__ = ["require", "require_torch"]


def require(name: str, what: str, remedy: str) -> Any:
    """Import an optional module and return it.

    Parameters
    ----------
    name : str
        A submodule's full name stands for the submodule.
    what : str
        Whatever needs it, the subject of the message.
    remedy : str
        What to do; the end of the message.

    Raises
    ------
    MissingDependencyError
        If its package is not installed. Where that fails to import another one, its own error is raised.
    """
    package = name.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingDependencyError(
            f"{what} needs {package}, which is not installed; {remedy}", name=error.name
        ) from error


def require_torch(what: str) -> Any:
    """Import torch and return it; where it is not installed, the error names the way without."""
    return require(
        "torch",
        what,
        "run: pip install torch torchvision open_clip_torch; or encode with OnnxEncoder(path) and a "
        "file that StagedEncoder.export wrote",
    )
