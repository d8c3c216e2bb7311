"""Reports on their way into files."""

from __future__ import annotations

from pathlib import Path

from clipretrieval._util.checks import check_path
from clipretrieval._util.files import NotDurableError, write_text
from clipretrieval.errors import InvalidInputError

__all__ = ["written"]


def written(path: str | Path | None, text: str, what: str = "report") -> str:
    """Return a text, once it is written to `path`, atomically, where that is given.

    Raises
    ------
    InvalidInputError
        If it cannot be written, or not be synced to the disk; the message says which.
    """
    if path is not None:
        path = check_path(path, "path")
        try:
            write_text(path, text + "\n")
        except NotDurableError as error:
            raise InvalidInputError(f"the {what} may not be on the disk: {error.strerror}") from error
        except OSError as error:
            raise InvalidInputError(
                f"the {what} cannot be written to {str(path)!r}: {error.strerror or error}"
            ) from error
    return text
