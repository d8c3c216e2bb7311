"""Other people's text, fit for a terminal and for JSON."""

from __future__ import annotations

import json

import pytest

from clipretrieval._util.text import json_document, json_line, parse_json, printable, readable, shortened

UNFIT = [
    *map(chr, [*range(0x20), *range(0x7F, 0xA0)]),
    *"\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2060\u2066\u2069\ufeff\ud800\udcff\U000e0041",
]
FIT = ["é", "ё", "寺", "ﷺ", "👩", "́", "\u00a0", "\u3000", "\U0001f3f3\ufe0f", "\\", "~"]


@pytest.mark.parametrize("letter", UNFIT, ids=ascii)
def test_what_a_terminal_obeys_or_hides_is_an_escape(letter: str) -> None:
    """The escape is ASCII, and only the newline and the tab may stay in a text of several lines."""
    escape = letter.encode("unicode_escape").decode()
    assert readable(f"a{letter}b") == f"a{escape}b"
    assert printable(f"a{letter}b") == (f"a{letter}b" if letter in "\n\t" else f"a{escape}b")


@pytest.mark.parametrize("letter", UNFIT, ids=ascii)
def test_json_of_it_is_ascii_there_and_the_same_value(letter: str) -> None:
    """JSON has an escape of its own for each, and reads as what was written."""
    line = json_line({"é": f"a{letter}b"})
    assert json.loads(line) == {"é": f"a{letter}b"}
    assert letter not in line
    assert line.isprintable()
    assert "é" in line


@pytest.mark.parametrize("text", FIT)
def test_letters_of_every_script_stay(text: str) -> None:
    """What can be read is shown as it is, in text and in JSON."""
    assert readable(text) == printable(text) == text
    assert json.loads(json_line(text)) == text


def test_joiners_stay_where_a_script_needs_them() -> None:
    """Persian, Hindi and families of emoji are written with joiners; beside ASCII they only deceive."""
    for word in ("می\u200cخواهم", "क्\u200dष", "👩\u200d👧"):
        assert readable(word) == word
        assert word in json_line(word)
    assert readable("cat\u200d") == r"cat\u200d"
    assert readable("c\u200cat") == r"c\u200cat"
    assert json_line("c\u200cat") == r'"c\u200cat"'


def test_escapes_are_not_escaped_again() -> None:
    """A text may pass several times."""
    once = printable("\x1b[31mred\x9b\u202e")
    assert once == r"\x1b[31mred\x9b\u202e"
    assert printable(once) == once


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    """It has as many letters as are allowed, counted when it can be read."""
    assert shortened("a\nb", 10) == r"a\nb"
    assert shortened("0123456789", 7) == "01…6789"


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        "[" * 100_000,
        "{",
        "",
        b"\xff",
        "1" * 5000,
        "[1,]",
        '{"a": 1, "a": 2}',
    ],
)
def test_json_is_finite_and_shallow(text: str | bytes) -> None:
    """What is no JSON, or holds what JSON cannot, is a ValueError and nothing else."""
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_json_is_read() -> None:
    """Values come as they were written."""
    assert parse_json('{"a": [1, 2.5, null, true, "é"]}') == {"a": [1, 2.5, None, True, "é"]}


def test_a_document_holds_any_path() -> None:
    """Letters stay as they are; the bytes of a path that is no UTF-8 are escapes, which any file can hold."""
    content = {"path": "pictures/é\udcff.png"}
    assert json_document(content).encode() == '{"path": "pictures/é\\udcff.png"}'.encode()
    assert parse_json(json_document(content, 2)) == content
