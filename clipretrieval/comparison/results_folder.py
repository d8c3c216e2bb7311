"""The folder that a run's results lie in, and a note in it of what it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipretrieval._util.files import read_file, write_text
from clipretrieval._util.secrets import without_secrets
from clipretrieval.errors import InvalidInputError

__all__ = ["INDEXES", "ResultsFolder"]

INDEXES = "indexes"
LARGEST_NOTE = 2**20
"""Bytes."""
_RUN = "run.json"


class ResultsFolder:
    """A folder for one run, interrupted or not.

    Parameters
    ----------
    path : Path
    settings : mapping of JSON values
        What tells a run from others.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self._note = path, path / _RUN
        self._text = json.dumps(without_secrets(settings), indent=2, ensure_ascii=False) + "\n"
        self._claimed = False

    def check(self) -> None:
        """Make the folder if it is not there, and refuse one that belongs to another run.

        Raises
        ------
        InvalidInputError
            If it does, or cannot be used.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = read_file(self._note, LARGEST_NOTE).decode("utf-8") if self._note.exists() else None
            indexes = self.path / INDEXES
            if indexes.exists() and not indexes.is_dir():
                raise InvalidInputError(
                    f"{str(indexes)!r} is a file, and a folder of that name is needed for the indexes; move "
                    "it away, or pass another folder for the results"
                )
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidInputError(
                f"{str(self.path)!r} cannot be used for the results: {reason}; pass another folder"
            ) from error
        if text is not None:
            self._compare(text)
            self._claimed = True

    def claim(self) -> None:
        """Write down whose the folder is, if that is not done yet.

        Raises
        ------
        InvalidInputError
            If it cannot be written.
        """
        if self._claimed:
            return
        try:
            write_text(self._note, self._text)
        except OSError as error:
            raise InvalidInputError(
                f"{str(self._note)!r} cannot be written: {error.strerror or error}; pass another folder for "
                "the results"
            ) from error
        self._claimed = True

    def _compare(self, text: str) -> None:
        try:
            known = json.loads(text)
            if not isinstance(known, dict):
                raise ValueError("it holds no mapping")
        except ValueError as error:
            raise InvalidInputError(
                f"{str(self._note)!r} does not tell which run the folder belongs to ({error}); pass another "
                "folder for the results, or remove the file if what the folder holds is of this run"
            ) from error
        settings = json.loads(self._text)
        differing = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
        if differing:
            told = ", ".join(
                f"{key} was {known.get(key)!r} and is {settings.get(key)!r}" for key in differing
            )
            raise InvalidInputError(
                f"{str(self.path)!r} holds a run with other settings ({told}); pass another folder for the "
                "results, or the same settings to go on with that run"
            )
