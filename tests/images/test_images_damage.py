"""Pictures that cannot be read, and decoding's manners with files and threads."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import shutil
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.errors import ImageDecodeError, InvalidInputError
from clipretrieval.images import RawImage, content_id, decode, iter_images
from clipretrieval.images.formats import foreign_format

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, file_format: str = "PNG") -> bytes:
    """The file that Pillow writes of an image."""
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_truncated_files_are_refused_by_name(file_format: str, tmp_path: Path) -> None:
    """A file cut in half raises an error that names it and keeps Pillow's as its cause."""
    whole = encoded(Image.fromarray(load_sample_image("flower.jpg")), file_format)
    path = tmp_path / "half.jpg"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageDecodeError, match=r"half\.jpg") as caught:
        decode(RawImage(0, path))
    assert caught.value.__cause__ is not None


def test_what_is_no_readable_file_is_refused_by_name(tmp_path: Path) -> None:
    """Missing, empty, textual, looping, special and impossible paths each say what is wrong."""
    reasons = {"missing.jpg": "No such file", "folder.jpg": "regular file", "loop.jpg": "symbolic links"}
    reasons |= {"empty.jpg": "empty", "text.jpg": "format", "fifo.jpg": "regular file", "nul\0.jpg": "null"}
    reasons |= {"x" * 300 + ".jpg": "too long", "script.eps": "format"}
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture\n" * 50)
    (tmp_path / "script.eps").write_bytes(encoded(Image.fromarray(COLOUR), "EPS"))
    os.mkfifo(tmp_path / "fifo.jpg")
    for name, reason in reasons.items():
        path = f"{tmp_path}/{name}"
        for read in (
            (decode, content_id) if name not in ("empty.jpg", "text.jpg", "script.eps") else (decode,)
        ):
            with pytest.raises(ImageDecodeError, match=reason) as caught:
                read(RawImage(0, path, source=path))
            assert repr(path) in str(caught.value)


def test_forbidden_files_are_refused_by_name(tmp_path: Path) -> None:
    """A file without read permission raises an error that says so."""
    path = tmp_path / "secret.png"
    path.touch(mode=0o000)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(ImageDecodeError, match=r"secret\.png.*Permission denied"):
        decode(RawImage(0, path))


def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit on the number of pixels stays in force."""
    data = encoded(Image.fromarray(COLOUR))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", COLOUR[..., 0].size // 2 - 1)
    with pytest.raises(
        ImageDecodeError, match=r"image number 3 .*decompression bomb.*PIL\.Image\.MAX_IMAGE_PIXELS"
    ):
        decode(RawImage(3, data))


def boxed(brand: bytes) -> bytes:
    """The first box of a file of the ISO family, as HEIC, AVIF and CR3 have it."""
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand


FOREIGN = {
    "photo.heic": (boxed(b"heic"), r"a HEIC image.*pillow_heif\.register_heif_opener"),
    "photo.jpg": (boxed(b"mif1"), "a HEIC image"),
    "photo.cr3": (boxed(b"crx "), "a raw file of a camera.*rawpy"),
    "photo.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "a raw file of a camera"),
    "photo.raf": (b"FUJIFILMCCD-RAW 0201", "a raw file of a camera"),
    "drawing.svg": (b"<?xml version='1.0'?>\n<svg/>", "an SVG drawing.*convert it to PNG"),
    "icon.icns": (encoded(Image.new("RGB", (16, 16)), "ICNS"), "wraps another image file.*convert it to PNG"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_images_that_pillow_cannot_read_are_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    """HEIC, raw files, SVG and icons say what they are and what to do, as files and as bytes."""
    content, words = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    for payload, who in ((tmp_path / name, re.escape(repr(str(tmp_path / name)))), (content, "number 4")):
        with pytest.raises(ImageDecodeError, match=f"image {who}.*{words}"):
            decode(RawImage(4, payload))


def test_raw_files_are_told_by_their_names_too(tmp_path: Path) -> None:
    """A camera's file that looks like a TIFF, and a missing HEIC file, are told by their extensions."""
    (tmp_path / "photo.NEF").write_bytes(b"II*\0\x08\0\0\0" + bytes(50))
    with pytest.raises(ImageDecodeError, match="a raw file of a camera"):
        decode(RawImage(0, tmp_path / "photo.NEF"))
    with pytest.raises(ImageDecodeError, match=r"missing\.heic': No such file"):
        next(iter_images(tmp_path / "missing.heic"))


def test_a_kind_that_can_be_read_here_is_not_called_unreadable() -> None:
    """With a plugin for a kind of image, a damaged one of it gets no advice to install that plugin."""
    content = boxed(b"heic")
    assert foreign_format(content, None, {".jpg"}) is not None
    assert foreign_format(content, "photo.heic", {".jpg", ".heic"}) is None


def test_broken_links_are_skipped_and_named(class_folder: Path, tmp_path: Path) -> None:
    """A broken link in a class folder is named as one, with where it leads, and can be skipped."""
    shutil.copytree(class_folder / "test", tmp_path / "set")
    (tmp_path / "set" / "temple" / "moved.png").symlink_to("/archive/moved.png")
    classifier = RetrievalClassifier(StagedEncoder(stage="pixel"), "memory")
    words = r"moved\.png': it is a broken link: '/archive/moved\.png', where it leads, does not exist"
    with pytest.raises(ImageDecodeError, match=words):
        classifier.fit(tmp_path / "set")
    classifier.fit(tmp_path / "set", on_error="skip")
    assert [Path(item.source or "").name for item in classifier.skipped_] == ["moved.png"]
    assert classifier.fit_report_.new == 10


@given(st.data())
def test_damaged_bytes_raise_nothing_but_our_error(data: st.DataObject) -> None:
    """Bytes with a few of them changed either decode or raise ImageDecodeError."""
    file_format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    damaged = bytearray(encoded(Image.fromarray(COLOUR), file_format))
    places = st.integers(0, min(len(damaged), 200) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        damaged[place] = value
    with warnings.catch_warnings(), contextlib.suppress(ImageDecodeError):
        warnings.simplefilter("ignore")
        assert decode(RawImage(0, bytes(damaged))).image.mode == "RGB"


def test_files_are_closed_at_once(tmp_path: Path) -> None:
    """Neither a good nor a broken file is left open."""
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    good.write_bytes(encoded(Image.fromarray(COLOUR)))
    broken.write_bytes(encoded(Image.fromarray(COLOUR))[:60] + struct.pack(">I", 7))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(RawImage(0, good))
        content_id(RawImage(0, good))
        with pytest.raises(ImageDecodeError):
            decode(RawImage(0, broken))
        gc.collect()
    assert caught == []


def test_one_lazy_image_may_be_decoded_by_many_threads(tmp_path: Path) -> None:
    """Threads that decode one lazily opened image at once all get the same picture."""
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "china.png")
    expected = decode(RawImage(0, load_sample_image("china.jpg"))).id
    for _ in range(3):
        with Image.open(tmp_path / "china.png") as lazy, ThreadPoolExecutor(8) as pool:
            found = {decoded.id for decoded in pool.map(decode, [RawImage(0, lazy)] * 8)}
        assert found == {expected}


def test_a_payload_that_is_no_picture_is_refused() -> None:
    """Something that is no kind of picture is an invalid input, not a broken picture."""
    for read in (decode, content_id):
        with pytest.raises(InvalidInputError, match="int") as caught:
            read(RawImage(0, 3))
        assert not isinstance(caught.value, ImageDecodeError)
