"""Atomic files: wholly the new content or wholly the old, and nothing else in the folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from clipretrieval._atomic import file_sha256, replacing, write_bytes, write_text


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    """The file holds what was last written, and no temporary file is left."""
    for content in ("first é", "second"):
        write_text(tmp_path / "file", content)
        assert (tmp_path / "file").read_text(encoding="utf-8") == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failing_block_leaves_the_old_file(tmp_path: Path) -> None:
    """When the block raises half-way, the old content stays and the temporary file goes."""
    write_bytes(tmp_path / "file", b"old")

    def write_half() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(b"ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_system_call_leaves_the_old_file(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the system cannot sync or rename, the error passes through and the old content stays."""

    def failing(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    write_bytes(tmp_path / "file", b"old")
    monkeypatch.setattr(os, step, failing)
    with pytest.raises(OSError, match="Input/output"):
        write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    """An atomic file may be read by whom an ordinary new file may be read."""
    write_bytes(tmp_path / "file", b"x")
    (tmp_path / "ordinary").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_the_checksum_is_that_of_the_content(tmp_path: Path) -> None:
    """A file longer than one block has the SHA-256 of its bytes."""
    content = bytes(range(256)) * 5000
    write_bytes(tmp_path / "file", content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
