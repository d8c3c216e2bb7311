"""URLs as a source of images, by fsspec: in memory, on disk, in a zip file, from a server on this machine."""

from __future__ import annotations

import functools
import http.server
import io
import os
import sys
import tarfile
import threading
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

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
from clipretrieval.images.urls import is_url, url_name, url_state

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
    """Files, a status where the path begins with one, and half of a file below ``cut``; without ranges."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        first, _, rest = self.path[1:].partition("/")
        if first.isdigit():
            self.send_error(int(first))
        elif first == "cut":
            content = (Path(self.directory) / rest).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        else:
            super().do_GET()

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
        (f"{memory}/*.tar", ["memory://store/x.tar/1.png", "memory://store/y-1.tar/1.png"]),
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
        (Path(f"https://me:{SECRET}@host/x"), InvalidInputError, r"no folder 'https:/host/x'; .* a URL must"),
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


def test_a_tar_on_a_server_is_one_request(server, pictures):
    """Of one version, whatever the server does to ranges; one that breaks off is not called damaged."""
    with tarfile.open(pictures / "large.tar", "w") as tar:
        for number in range(7):
            member = tarfile.TarInfo(f"{number}.bmp")
            member.size = 2**20
            tar.addfile(member, io.BytesIO(bytes([number]) * 2**20))
    Quiet.asked.clear()
    read = iter_raw(f"{server}/large.tar")
    payloads = [next(read).payload]
    (pictures / "large.tar").rename(pictures / "other.tar")
    assert [payload[0] for payload in (*payloads, *(raw.payload for raw in read))] == [*range(7)]
    assert Quiet.asked == ["GET /large.tar"]
    with pytest.raises(
        StoreUnavailableError, match=r"'http://127\.0\.0\.1:\d+/cut/other\.tar' cannot be read further: "
    ):
        list(iter_raw(f"{server}/cut/other.tar"))
    (pictures / "x.tar").touch()
    before = url_state(f"{server}/x.tar")
    os.utime(pictures / "x.tar", (1e9, 1e9))  # of the same size
    assert (
        before
        != url_state(f"{server}/x.tar")
        == (f"Last-Modified=Sun, 09 Sep 2001 01:46:40 GMT size={(pictures / 'x.tar').stat().st_size}")
    )


def test_an_image_that_may_not_be_read_is_skipped(server, pictures):
    """It, and none that only the server keeps from being read; of a tar it is told."""
    (pictures / "folder.png").mkdir()
    good = f"{server}/x.tar"
    for url, message in (
        (f"{server}/403/x.png", "it may not be read"),
        (f"{server}/410/x.png", "there is nothing at this URL"),
        (f"file://{pictures}/folder.png", "it is a folder"),
    ):
        skipped: list[SkippedImage] = []
        assert not list(iter_images([url], on_error="skip", skipped=skipped))
        assert message in skipped[0].reason
    with pytest.raises(InvalidInputError, match="cannot be read: it may not be read"):
        list(iter_raw(f"{server}/403/x.tar"))
    with pytest.raises(StoreUnavailableError, match="503"):
        list(iter_images([f"{server}/503/x.png", good], on_error="skip"))
    if os.name != "nt":
        (pictures / "train" / "linked").symlink_to(pictures / "train" / "a")
        (pictures / "train" / "a" / "x" / "round").symlink_to(pictures / "train")
        for url in (f"file://{pictures}/train", pictures / "train"):
            assert [raw.label for raw in iter_raw(url)].count("linked") == 2


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (f"https://me:a::{SECRET}@host/x.png", "https://host/x.png"),
        (f"https://me:pa'{SECRET}@host/x", "https://host/x"),
        (f'https://me:"{SECRET} 1@host/x', "https://host/x"),
        (f"https://me:{SECRET}?T@host/x#{SECRET}", "https://host/x"),
        (f"https://me:{SECRET}#T@host/x@2.png?{SECRET}", "https://host/x@2.png"),
        (f"ftp://u:{SECRET}/RET@host/x", "ftp://host/x"),
        (f"zip://a::s3://K:{SECRET}@b/x", "zip://a::s3://b/x"),
        (f"az://c/x?sv=1&{SECRET}", "az://c/x"),
        (f"webdav+https://h/x?{SECRET}", "webdav+https://h/x"),
        (f"https://h/a.zip?s={SECRET}::{SECRET}", "https://h/a.zip"),
        (Path(f"https://me:{SECRET}@host/x?{SECRET}"), "https:/host/x"),
        *(
            (same, same)
            for same in (
                "http://[::1]:80/a@2x.png",
                "abfs://c@acc.dfs.core.windows.net/x.png",
                "s3://b/x-??.tar",
                "file:///a@b/c?d=1.png",
                "zip://train/b c/4@2.png::a@b.zip",
                "a/b:c/d@e",
            )
        ),
    ],
)
def test_names_of_urls(url, name):
    """Without what is secret, whatever it is made of; and with all the rest."""
    assert url_name(url) == name
