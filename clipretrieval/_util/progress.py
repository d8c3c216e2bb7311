"""How work that takes long tells how far it is: to a function of the caller's, or as a bar."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np

from clipretrieval._util.checks import shown
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError

__all__ = ["Progress", "check_progress", "image_counter", "open_progress", "progress_bar"]

LINE_EVERY = 30.0
"""Seconds between lines, where there is no bar."""
Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the number of images done and, where it is known, their total."""


def check_progress(progress: Any) -> Progress | bool:
    """Return a progress argument as a callable, or as a bool that asks for a bar or for nothing.

    Raises
    ------
    InvalidInputError
        If it is neither callable, True, False nor None.
    """
    if progress is None or isinstance(progress, bool | np.bool_):
        return bool(progress)
    if not callable(progress) or isinstance(progress, type):
        raise InvalidInputError(
            "progress must be a function of (images done, total or None), True for a bar, or None; got "
            f"{shown(progress)}"
        )
    found: Progress = progress
    return found


def open_progress(progress: Progress | bool | None, what: str) -> AbstractContextManager[Progress]:
    """Open what a progress argument asks for, to be called with (images done, total or None).

    Parameters
    ----------
    progress : callable, bool or None
        See `check_progress`.
    what : str
        What the bar says is being done: "fitting".
    """
    checked = check_progress(progress)
    if checked is True:
        return progress_bar(what)
    return nullcontext(_untold if checked is False else checked)


def image_counter(progress: Progress, total: int | None, skipped: Sequence[Any]) -> Callable[[int], None]:
    """Return what counts images that have come, and tells of them and of `skipped`, which grows meanwhile."""
    arrived = 0

    def tell(images: int) -> None:
        nonlocal arrived
        arrived += images
        progress(arrived + len(skipped), total)

    tell(0)
    return tell


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """Show how far the block is: a bar in a notebook or a terminal, a line now and then elsewhere.

    Both go to the standard error. Lines come every half minute, so that a log shows that work goes on.

    Yields
    ------
    callable
        To be called with (images done, total or None).

    Warns
    -----
    ClipRetrievalWarning
        In a notebook without ipywidgets, by which bars are shown there.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter and importlib.util.find_spec("ipywidgets") is None:
        warn_caller("a progress bar in a notebook needs ipywidgets; run: pip install ipywidgets")
        yield _untold
        return
    # rich takes a pipe for a terminal where FORCE_COLOR is set, as it is on many build machines.
    if not console.is_jupyter and not (console.is_terminal and sys.stderr.isatty()):
        yield _lines(what)
        return
    from rich import progress as rich_progress
    from rich.text import Text

    class Rate(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> Text:
            return Text(f"{task.speed:.0f} images/s" if task.speed else "")

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        Rate(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


def _lines(what: str) -> Progress:
    """Return what writes a line if the last one, or the beginning, is long ago."""
    started = told = time.monotonic()

    def tell(done: int, total: int | None) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= LINE_EVERY:
            told = now
            of = "" if total is None else f" of {total:,}"
            print(f"{what}: {done:,}{of} images, {now - started:.0f} s", file=sys.stderr, flush=True)

    return tell


def _untold(done: int, total: int | None) -> None:
    """Take what nobody wants to know."""
