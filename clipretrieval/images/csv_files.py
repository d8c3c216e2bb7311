"""CSV files as columns of text, with the line that each row came from."""

from __future__ import annotations

import csv
import io
import os
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import dataclass
from pathlib import Path

from clipretrieval._util.files import read_file
from clipretrieval.errors import InvalidInputError

__all__ = ["CsvTable", "is_csv_path", "read_csv"]

ENDINGS = (".csv", ".tsv")
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class CsvTable:
    """The text of a CSV file.

    Attributes
    ----------
    names : list of str
        Of the columns, as the first line has them.
    rows : list of list of str
        As many cells each as there are names.
    lines : list of int
        Where in the file each row begins, counted from 1.
    """

    names: list[str]
    rows: list[list[str]]
    lines: list[int]


def is_csv_path(value: object) -> bool:
    """Whether a value is the path of a CSV file, by its ending; such a folder is none."""
    if not isinstance(value, str | os.PathLike):
        return False
    text = os.fsdecode(value)
    return text.lower().endswith(ENDINGS) and not os.path.isdir(text)  # noqa: PTH112 (never raises)


def read_csv(path: Path) -> CsvTable:
    """Read a CSV file whose first line names the columns.

    The encoding is UTF-8, or UTF-16 where a byte order mark says so. A file that ends in ``.tsv`` is
    separated by tabs; any other by the one of comma, semicolon and tab that gives its first line the most
    columns. Blanks behind a separator do not count; lines without any text are skipped. Errors name the line.
    """
    text = _decode_text(path, _content(path))
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=_delimiter(path, text), strict=True, skipinitialspace=True)
    names: list[str] = []
    rows: list[list[str]] = []
    begins: list[int] = []
    line = 1
    try:
        for row in reader:
            begin, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                names = [cell.strip() for cell in row]
                continue
            if len(row) != len(names):
                raise InvalidInputError(
                    f"line {begin} of {str(path)!r} has {len(row)} cells, but the first line names "
                    f"{len(names)} columns, {', '.join(map(repr, names))}; quote a cell that has a separator"
                )
            rows.append(row)
            begins.append(begin)
    except csv.Error as error:
        raise InvalidInputError(
            f"line {line} of {str(path)!r} cannot be read as CSV: {error}; quotes must be closed, and "
            "doubled within a quoted cell"
        ) from error
    if not rows:
        what = "has names of columns, but no row below them" if names else "is empty"
        raise InvalidInputError(f"{str(path)!r} {what}; expected a line with the columns' names, then rows")
    return CsvTable(names, rows, begins)


def _content(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInputError(f"cannot read {str(path)!r}: {reason}; expected a CSV file") from error


def _decode_text(path: Path, content: bytes) -> str:
    wide = content.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    content = content.removeprefix(BOM_UTF8)
    try:
        text = content.decode("utf-16" if wide else "utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(
            f"line {line} of {str(path)!r} is not text in {'UTF-16' if wide else 'UTF-8'}: save the file as "
            "CSV in UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidInputError(f"line {line} of {str(path)!r} holds a NUL character; expected a text file")
    return text


def _delimiter(path: Path, text: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = re.search(r"[^\r\n]*\S[^\r\n]*", text)
    header = first[0] if first else ""
    columns = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in DELIMITERS}
    return max(DELIMITERS, key=columns.__getitem__)  # the first of equals
