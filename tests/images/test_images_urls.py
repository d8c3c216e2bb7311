"""URLs as a source of images, by fsspec: in memory, on disk, in a zip file, from a server on this machine."""

from __future__ import annotations

import functools
import http.server
import sys
import tarfile
import threading
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from PIL import Image

from clipretrieval import (
    ClipRetrievalWarning,
    ImageDecodeError,
    InvalidInputError,
    MissingDependencyError,
    StoreUnavailableError,
)
from clipretrieval.images import SkippedImage, count_hint, iter_images, iter_raw, read_table
from clipretrieval.images.thumbnail import thumbnail
from clipretrieval.images.urls import is_url, url_name

SECRET = "SECRET"  # noqa: S105  nobody's


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of two images each, and what is passed over."""
    for number, name in enumerate(("train/a/1.png", "train/a/x/2.png", "train/b/3.png", "train/b c/4.png")):
        file = tmp_path / "www" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    (tmp_path / "www" / "train" / ".hidden.png").write_bytes(b"")
    (tmp_path / "www" / "train" / "a" / "note.txt").write_bytes(b"")
    with tarfile.open(tmp_path / "www" / "x.tar", "w") as tar:
        tar.add(tmp_path / "www" / "train" / "a" / "1.png", "1.png")
    return tmp_path / "www"


@pytest.fixture
def memory(pictures: Path) -> Iterator[str]:
    """The same in fsspec's memory."""
    system = fsspec.filesystem("memory")
    for file in pictures.rglob("*.*"):
        system.pipe(f"/store/{file.relative_to(pictures).as_posix()}", file.read_bytes())
    yield "memory://store"
    system.store.clear()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(pictures: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(pictures))
    ) as made:
        threading.Thread(target=made.serve_forever).start()
        yield f"http://me:{SECRET}@127.0.0.1:{made.server_port}"
        made.shutdown()


def test_folders_are_read_wherever_they_lie(pictures, memory, tmp_path):
    """Same ids, labels and order; each image's source is its own URL."""
    expected = [(item.id, item.label) for item in iter_images(pictures / "train")]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        for file in pictures.rglob("*.png"):
            made.write(file, file.relative_to(pictures))
    for url, source in (
        (f"{memory}/train", "memory://store/train/b c/4.png"),
        (f"file://{pictures}/train/", f"file://{pictures}/train/b c/4.png"),
        (f"zip://train::{tmp_path}/x.zip", f"zip://train/b c/4.png::{tmp_path}/x.zip"),
    ):
        found = list(iter_images(url))
        assert [(item.id, item.label) for item in found] == expected
        assert found[-1].source == source
        assert count_hint(url) == 4
        assert [item.id for item in iter_images([item.source for item in found])] == [
            each for each, _ in expected
        ]
    whole = list(iter_raw(f"zip://::{tmp_path}/x.zip"))
    assert [raw.label for raw in whole] == ["train"] * 4
    assert [raw.label for raw in iter_raw(f"{memory}/train/b")] == [None]
    assert [(item.id, item.source) for item in iter_images(f"{memory}/train/a/1.png")] == [
        (expected[0][0], "memory://store/train/a/1.png")
    ]
    fsspec.filesystem("memory").pipe("/store/train/0.png", b"")
    with pytest.warns(ClipRetrievalWarning, match=r"1 image\(s\) beside .* 'memory://store/train'"):
        assert len(list(iter_raw(f"{memory}/train"))) == 4


def test_tars_and_cells_of_tables_may_be_urls(pictures, memory, tmp_path):
    """A tar is read as a stream; paths beside URLs still start at the table."""
    fsspec.filesystem("memory").copy("/store/x.tar", "/store/y-1.tar")
    for tars, names in (
        (f"{memory}/x.tar", ["memory://store/x.tar/1.png"]),
        (f"{memory}/*.tar", ["memory:///store/x.tar/1.png", "memory:///store/y-1.tar/1.png"]),
        ([f"{memory}/{{x,y-1}}.tar"], ["memory://store/x.tar/1.png", "memory://store/y-1.tar/1.png"]),
    ):
        assert [item.source for item in iter_images(tars)] == names
    with pytest.raises(
        InvalidInputError, match=r"'memory://store/y-0\.tar' cannot be read: there is nothing"
    ):
        list(iter_raw(f"{memory}/y-{{0..1}}.tar"))
    with pytest.raises(InvalidInputError, match=r"there is no tar file 'memory://store/no-\*\.tar'"):
        iter_raw(f"{memory}/no-*.tar")
    frame = pd.DataFrame({"path": [f"{memory}/train/b/3.png", "a/1.png"], "label": [1, 2]})
    frame.to_csv(pictures / "train" / "table.csv", index=False)
    assert [item.label for item in iter_images(pictures / "train" / "table.csv")] == [1, 2]
    with pytest.raises(InvalidInputError, match=r"'memory://x\.csv' is a URL, and tables are read from"):
        read_table("memory://x.csv")


def test_a_server_is_read_and_its_secrets_are_kept(server, pictures):
    """Whatever is shown of an image, of a source or of an error."""
    files = [pictures / "train" / "a" / "1.png", pictures / "train" / "a" / "x" / "2.png"]
    expected = [item.id for item in iter_images(files)]
    found = list(iter_images([f"{server}/train/a/1.png?token={SECRET}", f"{server}/train/a/x/2.png"]))
    assert [item.id for item in found] == expected
    folder = [(item.id, item.label) for item in iter_images(f"{server}/train/")]
    assert folder == [(item.id, item.label) for item in iter_images(pictures / "train")]
    tar = list(iter_images(f"{server}/x.tar?X-Amz-Signature={SECRET}"))
    assert [item.id for item in tar] == expected[:1]
    shown = [repr(found), repr(tar)]
    skipped: list[SkippedImage] = []
    for url, kind, message in (
        (
            f"{server}/no.png?sig={SECRET}",
            ImageDecodeError,
            r"'http://127\.0\.0\.1:\d+/no\.png': there is nothing",
        ),
        (f"{server}/no.tar?sig={SECRET}", InvalidInputError, r"/no\.tar' cannot be read: there is nothing"),
        (f"{server}/no?sig={SECRET}", InvalidInputError, r"there is nothing at 'http://127\.0\.0\.1:\d+/no'"),
        (
            f"http://me:{SECRET}@127.0.0.1:1/a.png?sig={SECRET}",
            StoreUnavailableError,
            r"'http://127\.0\.0\.1:1/a",
        ),
        (
            f"http://me:{SECRET}@127.0.0.1:1/?sig={SECRET}",
            StoreUnavailableError,
            r"^[^\n]* cannot be reached: [^\n]*$",
        ),
    ):
        with pytest.raises(kind, match=message) as raised:
            list(iter_images(url))
        shown += [str(raised.value), *traceback.format_exception(raised.value)]
        if kind is StoreUnavailableError:  # no fault of the image
            with pytest.raises(StoreUnavailableError):
                list(iter_images([url], on_error="skip"))
    assert not list(iter_images([f"{server}/no.png?sig={SECRET}"], on_error="skip", skipped=skipped))
    shown += [repr(skipped), url_name(f"simplecache::{server}/x?y={SECRET}::{SECRET}")]
    assert SECRET not in "\n".join(shown)
    assert thumbnail(f"{server}/train/a/1.png") is None  # a store may name what it likes


def test_what_is_missing_is_named(memory, monkeypatch):
    """In a line: the package, the protocol, the folder, images in it."""
    for url, kind, message in (
        ("sftp://me@host/x", MissingDependencyError, r"reading 'sftp://host/x' needs .* \"paramiko\""),
        ("nosuch://host/x", StoreUnavailableError, "cannot be reached: Protocol not known: nosuch"),
        ("memory://nowhere", InvalidInputError, "there is nothing at 'memory://nowhere'"),
        (f"{memory}/train/a/note.txt", InvalidInputError, "holds no images; looked for"),
        ("zip://a::/no.zip", InvalidInputError, "there is nothing at 'zip://a::/no.zip'"),
    ):
        with pytest.raises(kind, match=message):
            iter_raw(url)
    with pytest.raises(MissingDependencyError):
        list(iter_images(["sftp://me@host/x.png"], on_error="skip"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "fsspec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "clipretrieval\[fsspec\]"'):
        list(iter_images(f"{memory}/train"))
    assert [
        is_url(each) for each in ("C://x", "c:/x", "a/b", "://", Path("s3://b"), b"s3://b", "a::ab://")
    ] == [
        *([False] * 6),
        True,
    ]
