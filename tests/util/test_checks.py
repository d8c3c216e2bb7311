"""The checks of arguments: what is meant passes, and whatever else there is ends in one kind of error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clipretrieval._util.checks import (
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_path,
    check_strings,
    shown,
)
from clipretrieval.errors import InvalidInputError


class Unprintable:
    """Has a repr that fails."""

    def __repr__(self) -> str:
        raise RuntimeError


STRANGE = [
    *(None, "no", "", b"x", 1.5, float("nan"), float("inf"), 10**400, [], {}, {"a": 1}, set(), object(), int),
    *(np.zeros(3), np.array(["a"]), pd.DataFrame({"a": ["b"]}), io.StringIO("a\nb"), Unprintable(), "\0"),
]


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: type(value).__name__)
def test_strange_values_are_refused_by_name(value: Any) -> None:
    """No value of another kind passes, none raises anything else, and the message names the argument."""
    for check in (check_bool, check_int):
        with pytest.raises(InvalidInputError, match=r"^it "):
            check(value, "it")
    with pytest.raises(InvalidInputError, match=r"^it must be one of 'a', 'b'"):
        check_choice(value, "it", ("a", "b"))


def test_switches() -> None:
    """True and False pass, NumPy's too, as plain bools; numbers do not."""
    assert [check_bool(value, "x") for value in (True, np.True_, np.False_)] == [True, True, False]
    for value in (0, 1, np.int64(1)):
        with pytest.raises(InvalidInputError):
            check_bool(value, "x")


def test_whole_numbers() -> None:
    """Integers within the bounds pass as plain ints; bools and what lies outside do not."""
    assert type(check_int(np.uint8(3), "k")) is int
    assert check_int(0, "k", least=0) == 0
    for value in (0, -1, True, np.True_, 11, 10**30):
        with pytest.raises(
            InvalidInputError, match="k must be a whole number, at least 1 and at most 10; got"
        ):
            check_int(value, "k", most=10)


def test_numbers() -> None:
    """Finite numbers within the bounds pass as floats; an int too long for a float is refused."""
    assert check_number(np.float32(0.5), "t", above=0) == 0.5
    assert check_number(1, "t", least=0, most=1) == 1.0
    for value in (0, -1, float("nan"), float("inf"), 10**400, True, "1", None, np.array(1.0)):
        with pytest.raises(InvalidInputError, match="t must be a finite number above 0; got"):
            check_number(value, "t", above=0)


def test_strings() -> None:
    """Whatever holds strings in an order passes; what iterates over keys, lines or letters does not."""
    for given in (["a", "b"], ("a", "b"), np.array(["a", "b"]), pd.Series(["a", "b"]), iter(["a", "b"])):
        assert check_strings(given, "ids") == ["a", "b"]
    assert type(check_strings([np.str_("a")], "ids")[0]) is str
    for given in (pd.DataFrame({"a": ["b"]}), {"a": 1}, {"a"}, io.StringIO("a"), "a", b"a", 3, np.array("a")):
        with pytest.raises(InvalidInputError, match=r"^ids must be"):
            check_strings(given, "ids")
    with pytest.raises(InvalidInputError, match=r"^ids must be str; ids\[1\] is 2$"):
        check_strings(["a", 2], "ids")


def test_paths(tmp_path: Path) -> None:
    """A path passes, of whatever type; what no operating system takes is refused before one is asked."""
    assert check_path(str(tmp_path), "path") == check_path(tmp_path, "path") == tmp_path
    for given in ("", "a\0b", "x" * 300, "d/" * 3000, "\ud800", 3, None, ["a"], pd.DataFrame()):
        with pytest.raises(InvalidInputError, match=r"^path "):
            check_path(given, "path")


def test_quotations_are_short() -> None:
    """A value is quoted in one line of at most a hundred characters, even if it cannot show itself."""
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 1000)) == 100
    assert "\n" not in shown(pd.DataFrame({"a": range(9)}))
    assert shown(Unprintable()) == "an object of type Unprintable"
