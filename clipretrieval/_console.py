"""What the command shows beside its answer: progress on a terminal, and warnings of one line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from clipretrieval._cli_output import tell
from clipretrieval._text import printable
from clipretrieval._timing import Progress as ProgressCallback
from clipretrieval.errors import ClipRetrievalWarning

__all__ = ["progress_bar", "quiet_libraries"]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} images/s" if task.speed else "")


@contextmanager
def progress_bar(what: str) -> Iterator[ProgressCallback]:
    """Show a bar on the standard error while the block runs, if that is a terminal.

    Parameters
    ----------
    what : str
        What is being done: "fitting".

    Yields
    ------
    callable
        To be called with (images done, total or None).
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    # rich takes a pipe for a terminal where FORCE_COLOR is set, as it is on many build machines.
    shown = console.is_terminal and sys.stderr.isatty()
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


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
