"""JSON, and texts from outside (labels, paths, messages) made fit to be shown on a terminal."""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ["counted", "json_document", "json_line", "parse_json", "printable", "readable", "shortened"]

# What a terminal obeys (C0, DEL, C1), what turns or hides the letters beside it (bidirectional controls, zero
# widths, tags), what ends a line elsewhere, and surrogates, which no stream can encode.
_CONTROLS = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e0fff"
)
# Joiners are needed to write Persian, Hindi and some emoji; beside ASCII they only make names look alike.
_JOINERS = r"(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
_UNFIT = re.compile(rf"[{_CONTROLS}]|{_JOINERS}")
_LAYOUT = "\n\t"
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text with visible escapes like ``\x9b`` for control characters, save newlines and tabs."""
    return _UNFIT.sub(lambda found: found[0] if found[0] in _LAYOUT else _escape(found[0]), text)


def readable(value: Any) -> str:
    """Return the text of a value in one line: newlines and tabs are escapes too."""
    return _UNFIT.sub(lambda found: _escape(found[0]), str(value))


def counted(count: int, what: str) -> str:
    """Return a number of things, such as 1 class and 2 classes."""
    return f"{count:,} {what if count == 1 else what + ('es' if what.endswith(('s', 'ch')) else 's')}"


def shortened(text: Any, most: int) -> str:
    """Return a text in at most so many letters: of a longer one, its beginning and its end."""
    plain = readable(text)
    if len(plain) <= most:
        return plain
    end = most * 2 // 3  # a path's end tells more than its beginning
    return f"{plain[: most - end - 1]}…{plain[-end:]}"


def json_line(content: Any) -> str:
    r"""Return JSON in one line, its letters as they are and its control characters as ``\u009b``."""
    # What the pattern finds lies within strings: JSON has nothing of the kind outside them.
    return _UNFIT.sub(lambda found: json.dumps(found[0])[1:-1], json.dumps(content, ensure_ascii=False))


def json_document(content: Any, indent: int | None = None) -> str:
    r"""Return JSON for a file, its letters as they are, but for lone surrogates, such as ``\udcff``.

    These are the bytes of a path that is no UTF-8, which no file of text can hold.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return _SURROGATES.sub(lambda found: json.dumps(found[0])[1:-1], text)


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text holds, which is finite.

    Raises
    ------
    ValueError
        If it is no JSON, nested too deeply, has a field twice, or holds a number that is not finite or too
        long.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _finite_number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is there twice")
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite_number
)
