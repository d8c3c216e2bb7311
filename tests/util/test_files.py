"""Files: replaced wholly or not at all, with nothing else in the folder; only regular ones are read."""

from __future__ import annotations

import hashlib
import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from clipretrieval._util import files as _files
from clipretrieval._util.files import (
    IrregularFileError,
    NotDurableError,
    file_sha256,
    open_file,
    read_file,
    replacing,
    write_text,
)


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    """The file holds what was last written, and no temporary file is left."""
    for content in ("first é", "second"):
        write_text(tmp_path / "file", content)
        assert (tmp_path / "file").read_text(encoding="utf-8") == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failing_block_leaves_the_old_file(tmp_path: Path) -> None:
    """When the block raises half-way, the old content stays and the temporary file goes."""
    write_text(tmp_path / "file", "old")

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

    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, step, failing)
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    """An atomic file may be read by whom an ordinary new file may be read."""
    write_text(tmp_path / "file", "x")
    (tmp_path / "ordinary").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_the_checksum_is_that_of_the_content(tmp_path: Path) -> None:
    """A file longer than one block has the SHA-256 of its bytes."""
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
@pytest.mark.parametrize("mode", [0o600, 0o444, 0o664])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    """What only its owner could read stays so."""
    write_text(tmp_path / "file", "old")
    (tmp_path / "file").chmod(mode)
    write_text(tmp_path / "file", "new")
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
            write_text(tmp_path / name, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_a_folder_that_cannot_be_synced_is_told_truly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is in place when its folder's fsync fails, and the error says so."""

    def failing(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(_files, "sync_folder", failing)
    with pytest.raises(NotDurableError, match=r"file is in place, but a power cut may undo it"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path) -> None:
    """A file whose name is as long as names may be is written."""
    name = "é" * 127
    write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


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


def test_reading_takes_the_memory_of_the_content(tmp_path: Path) -> None:
    """That a file may have 64 MiB costs nothing where it has a few bytes."""
    (tmp_path / "file").write_bytes(b"content")
    tracemalloc.start()
    try:
        assert read_file(tmp_path / "file", 1 << 26) == b"content"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="only Linux tells of its version there")
def test_a_file_that_has_more_than_it_says_is_read_up_to_the_most() -> None:
    """A file whose size the system gives as 0, as that of one that was empty until now, is read whole."""
    content = Path("/proc/version").read_bytes()
    assert content
    assert read_file("/proc/version", len(content)) == content
    with pytest.raises(IrregularFileError, match="it has more than"):
        read_file("/proc/version", len(content) - 1)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither")
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe without a writer, a device without an end and a folder are refused."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(IrregularFileError, match="not a regular file"):
            open_file(tmp_path / name)
