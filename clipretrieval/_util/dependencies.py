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
        Who needs it, as the message begins.
    remedy : str
        What to do, as the message ends.

    Raises
    ------
    MissingDependencyError
        If its package is not installed. What the package itself fails to import is that error still.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingDependencyError(
            f"{what} needs {package}, which is not installed; {remedy}", name=error.name
        ) from error


def require_torch(what: str) -> None:
    """Raise an error that names the way without torch, if it is not installed."""
    require(
        "torch",
        what,
        "run: pip install torch torchvision open_clip_torch; or encode with OnnxEncoder(path) and a "
        "file that StagedEncoder.export wrote",
    )
