"""Warnings that point at the line of the caller's, however deep in the library they arise."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from clipretrieval.errors import ClipRetrievalWarning

__all__ = ["warn_caller"]

PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"


def warn_caller(message: str, category: type[Warning] = ClipRetrievalWarning) -> None:
    """Warn at the first line up the stack that is not the library's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
