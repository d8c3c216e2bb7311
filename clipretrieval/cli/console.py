"""What the command shows beside its answer: progress on a terminal, and warnings of one line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clipretrieval._util.progress import progress_bar
from clipretrieval._util.text import printable
from clipretrieval.cli.output import tell
from clipretrieval.errors import ClipRetrievalWarning

__all__ = ["progress_bar", "quiet_libraries"]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Show this library's warnings, a line each, and nothing that other libraries log while the block runs.

    Their warnings are shown, in the same form, where ``python -W`` or ``PYTHONWARNINGS`` asks for some.
    """
    # Read when the libraries are imported; their bars would run into ours, and into pipes.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    silenced = logging.root.manager.disable
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", ClipRetrievalWarning)
        warnings.showwarning = _show_warning
        logging.disable()
        try:
            yield
        finally:
            logging.disable(silenced)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    # A bar that is shown writes to the terminal by itself, so that only what is printed here is checked.
    tell(printable(f"warning: {' '.join(str(message).splitlines())}"))
