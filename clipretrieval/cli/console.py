"""What the command shows: answers on the standard output; warnings, progress and all else on the other."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from clipretrieval._util.text import printable, readable
from clipretrieval.errors import ClipRetrievalWarning, InvalidInputError

if TYPE_CHECKING:
    from clipretrieval.images.stream import SkippedImage
    from clipretrieval.retrieval.reports import FitReport

__all__ = ["SKIPPED", "guard_terminal", "quiet_libraries", "say", "tell", "tell_fitted", "tell_skipped"]

SKIPPED = 3
"""Exit status where images were skipped and all others were dealt with."""


class _TerminalText:
    """A text stream that shows control characters as escapes, whoever writes to it.

    Everything else is that of the stream below it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    @property
    def rich_proxied_file(self) -> Any:
        """Where rich draws its bars, which are made of what is escaped here."""
        return self._stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_terminal() -> None:
    """Let nothing that this process prints control the terminal: names and messages are other people's."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _TerminalText):  # None: closed before we began
            with suppress(AttributeError):
                # A class may be named in letters that the terminal or the pipe cannot take.
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _TerminalText(stream))


def say(text: str) -> None:
    """Print a part of the answer, at once: somebody may be reading along.

    Raises
    ------
    BrokenPipeError
        If nobody reads any more.
    InvalidInputError
        If it cannot be written, as on a full disk.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InvalidInputError(
            f"the answer cannot be written to the standard output: {error.strerror or error}"
        ) from error


def tell(text: str) -> None:
    """Print a line to the standard error; work is not given up because nobody reads it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def tell_skipped(image: SkippedImage) -> None:
    """Name an image that was skipped."""
    tell(f"skipped: {' '.join(image.reason.splitlines())}")


def tell_fitted(report: FitReport) -> None:
    """Name the images of a fit that were skipped, and those that came under several labels."""
    for image in report.skipped:
        tell_skipped(image)
    for conflict in report.conflicts:
        tell(f"equal images: {readable(conflict)}")
    if report.n_conflicts > len(report.conflicts):
        tell(f"equal images: {report.n_conflicts - len(report.conflicts):,} more under several labels")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Show this library's warnings, a line each, and nothing that other libraries log while the block runs.

    Their warnings are shown, in the same form, where ``python -W`` or ``PYTHONWARNINGS`` asks for some.
    """
    import logging

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
