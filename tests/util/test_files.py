"""Atomic files: wholly the new content or wholly the old, and nothing else in the folder."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from clipretrieval._util import files as _atomic
from clipretrieval._util.files import NotDurableError, file_sha256, replacing, write_bytes, write_text


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
@pytest.mark.parametrize("mode", [0o600, 0o444, 0o664])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    """What only its owner could read stays so."""
    write_bytes(tmp_path / "file", b"old")
    (tmp_path / "file").chmod(mode)
    write_bytes(tmp_path / "file", b"new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    with replacing(tmp_path / "other", mode_of=tmp_path / "file") as temporary:
        temporary.write_bytes(b"x")
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == mode


@pytest.mark.parametrize("exists", [True, False])
def test_what_a_link_points_to_is_replaced(tmp_path: Path, exists: bool) -> None:
    """A link stays a link, and the file that it names holds what was written; or the link is replaced."""
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "file", tmp_path / "link"
    link.symlink_to("folder/file")
    if exists:
        target.write_bytes(b"old")
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    write_text(link, "newer", follow=False)
    assert (link.is_symlink(), link.read_text(), target.read_text()) == (False, "newer", "new")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """A pipe, a link to one (as to a device) and a folder stay what they are."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link", "folder"):
        with pytest.raises(OSError, match=r"not a regular file|[Dd]irectory"):
            write_bytes(tmp_path / name, b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_a_folder_that_cannot_be_synced_is_told_truly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is in place when its folder's fsync fails, and the error says so."""

    def failing(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    write_bytes(tmp_path / "file", b"old")
    monkeypatch.setattr(_atomic, "sync_folder", failing)
    with pytest.raises(NotDurableError, match=r"file is in place, but a power cut may undo it"):
        write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path) -> None:
    """A file whose name is as long as names may be is written."""
    name = "é" * 127
    write_bytes(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
