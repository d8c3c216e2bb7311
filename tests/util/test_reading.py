"""Files opened for reading: regular and bounded ones alone, without waiting for any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipretrieval._util.files import IrregularFileError, open_file, read_file
from clipretrieval._util.text import parse_json


def test_a_file_is_read_through_a_link(tmp_path: Path) -> None:
    """A link to a regular file is read as the file."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_file(tmp_path / name, 7) == b"content"
        with open_file(tmp_path / name) as file:
            assert file.read() == b"content"


def test_a_file_is_no_larger_than_it_can_be(tmp_path: Path) -> None:
    """A sparse file of three GiB is refused by its size."""
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 3 << 30)
    with pytest.raises(IrregularFileError, match=r"has 3221225472 bytes, where 100 are the most"):
        read_file(tmp_path / "file", 100)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither")
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe without a writer, a device without an end and a folder are refused."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(IrregularFileError, match="not a regular file"):
            open_file(tmp_path / name)


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
