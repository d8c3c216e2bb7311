"""What the command prints: answers to the standard output, all else to the standard error."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from clipretrieval._util.text import printable

__all__ = ["guard_terminal", "say", "tell"]


class _TerminalText:
    """A text stream that shows control characters as escapes, whoever writes to it.

    Parameters
    ----------
    stream : text stream
        Everything else is its own.
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
        from clipretrieval.errors import InvalidInputError

        raise InvalidInputError(
            f"the answer cannot be written to the standard output: {error.strerror or error}"
        ) from error


def tell(text: str) -> None:
    """Print a line to the standard error; work is not given up because nobody reads it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
