"""Tar files of webdataset's form as a source of images."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipretrieval import ClipRetrievalWarning, InvalidInputError, RetrievalClassifier, StagedEncoder
from clipretrieval.images import SkippedImage, content_id, count_hint, iter_images, iter_raw, read_tars


def png(grey: int) -> bytes:
    page = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), grey, np.uint8)).save(page, "PNG")
    return page.getvalue()


def write(path: Path, *members: tuple[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def header(name: str, kind: bytes, size: int) -> bytes:
    """One member's header, and a block of what lies behind it."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + (b"a" + b"\0" * 511 if size else b"")


def labels(path: Path, label: str | None = None) -> Sequence[object]:
    return [raw.label for raw in iter_raw(read_tars(path, label=label))]


def test_images_of_tars_are_those_of_files(tmp_path, monkeypatch):
    """Same ids, whatever names the tars: their paths, braces, stars, a list; compressed as well."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        members = (f"./d/{number}.png", png(number)), (f"./d/{number}.cls", f"{number % 3}\n")
        write(tmp_path / f"t-{number:02}.tar", *members[:: 1 if number % 2 else -1])
    for given, expected in (
        ("t-{08..11}.tar", [8, 9, 10, 11]),
        ("t-{01,03}.tar", [1, 3]),
        ("t-0[45].tar", [4, 5]),
        (["t-07.tar", Path("t-1*.tar")], [7, 10, 11]),
        (tmp_path / "t-02.tar", [2]),
    ):
        found = list(iter_images(given))
        assert [item.label for item in found] == [number % 3 for number in expected]
        assert [item.id for item in found] == [
            content_id(raw) for raw in iter_raw([png(number) for number in expected])
        ]
    assert found[0].source == f"{tmp_path}/t-02.tar/d/2.png"
    assert count_hint("t-02.tar") is None
    packed = write(tmp_path / "x.tar.gz", ("a.png", png(1)), mode="w:gz")
    assert [(item.label, item.source) for item in iter_images(packed)] == [(None, f"{packed}/a.png")]
    assert [item.label for item in iter_images(["t-00.tar", "t-01.tar"], ["x", "y"])] == ["x", "y"]
    assert repr(read_tars("t-{00,01}.tar")) == "ImageTars(paths=['t-00.tar', 't-01.tar'], label=None)"


def test_labels_are_found_where_webdataset_puts_them(tmp_path):
    """In .cls before .json before .txt; a whole number of .cls is one; another is named."""
    tar = tmp_path / "x.tar"
    both = ("a.json", json.dumps({"label": "owl", "kind": 7})), ("a.txt", "a bird\n"), ("a.png", png(0))
    write(tar, *both, ("a.cls", "3"), ("a.npy", b"\x93"), ("a.seg.png", png(1)))
    assert (labels(tar), labels(tar, "kind"), labels(tar, "txt"), labels(tar, ".cls")) == (
        *([3], [7]),
        *(["a bird"], [3]),
    )
    write(tar, *both)
    assert labels(tar) == ["owl"]
    write(tar, *both, ("B.JSON", '{"label": "cafe\u0301"}'), ("B.txt", "a cat"), ("B.PNG", png(3)))
    assert labels(tar) == labels(tar, "JSON") == ["owl", "caf\xe9"]
    assert labels(tar, "TXT") == ["a bird", "a cat"]
    assert [raw.source for raw in iter_raw(tar)] == [f"{tar}/a.png", f"{tar}/B.PNG"]
    for wanted in ("kind", "cls"):
        write(tar, ("a.json", '{"label": "owl"}'), ("a.png", png(0)))
        with pytest.raises(
            InvalidInputError, match=rf"no label in its member \.{wanted} or \.json, where label= says"
        ):
            labels(tar, wanted)
    for members, message in (
        ([("b.txt", "x")], None),
        ([("b.cls", "1")], r"label of '.*x\.tar/b\.png': it has no label in its member \.txt, where images"),
        ([("b.txt", b"\xff")], r"label '.*x\.tar/b\.txt' cannot be read"),
        ([("b.cls", "x" * (2**20 + 1))], r"'b\.cls' in '.*x\.tar' has 1048577 bytes"),
    ):
        write(tar, ("a.txt", "owl"), ("a.png", png(0)), *members, ("b.png", png(1)))
        if message is None:
            assert labels(tar) == ["owl", "x"]
            continue
        with pytest.raises(InvalidInputError, match=message):
            labels(tar)
    for content, message in (
        ("[" * 100_000, r"label '.*x\.tar/b\.json' cannot be read"),
        ('{"label": [1]}', r"label of '.*b\.png': labels must be int or str; found list"),
        ('{"label": 1}', r"label of '.*b\.png': labels must all be of one type"),
    ):
        write(tar, ("a.json", '{"label": "owl"}'), ("a.png", png(0)), ("b.json", content), ("b.png", png(1)))
        with pytest.raises(InvalidInputError, match=message):
            labels(tar)


def test_labels_are_read_where_they_are_wanted(tmp_path):
    """Captions that only some images have are no matter to an answer; one class is spelled in one form."""
    encoder, tar = StagedEncoder(stage="pixel"), tmp_path / "x.tar"
    write(tar, ("0.png", png(9)), ("0.txt", b"\xff"), ("1.png", png(200)))
    classifier = RetrievalClassifier(encoder, "memory", k=1).fit(tar, ["cafe\u0301", "b"])
    assert classifier.predict(tar).tolist() == ["cafe\u0301", "b"]
    assert classifier.kneighbors(tar, 1).labels[:, 0].tolist() == ["cafe\u0301", "b"]
    assert len(encoder.encode(tar)) == 2
    with pytest.raises(InvalidInputError, match=r"the label '.*/0\.txt' cannot be read"):
        classifier.evaluate(tar)
    write(tar, ("2.png", png(7)), ("2.cls", "caf\xe9"))
    assert classifier.partial_fit(tar).classes_.tolist() == ["b", "cafe\u0301"]


def test_a_damaged_tar_is_told_wherever_it_ends(tmp_path):
    """Also between two members, and where a header is broken: nothing is taken for its end but the end."""
    whole = write(tmp_path / "x.tar", *((f"{number}.png", png(number)) for number in range(3))).read_bytes()
    assert len(list(iter_raw(tmp_path / "x.tar"))) == 3
    cut = tmp_path / "cut.tar"
    broken = bytearray(whole)
    broken[1024 + 148 : 1024 + 156] = b"7777777\0"  # the second checksum
    damaged = [
        (whole[:end], rf"cut\.tar' .*damaged behind {name}")
        for end, name in (
            *(
                (0, "its beginning"),
                (300, "its beginning"),
                (600, "'0.png'"),
                (1024, "'0.png'"),
                (1500, "'0.png'"),
            ),
        )
    ]
    for content, message in (
        *damaged,
        (broken, "damaged behind '0.png'"),
        (whole + whole, "damaged behind '2.png' .more follows its end"),
        (header("././@LongLink", b"L", 1) * 3000, r"damaged behind its beginning"),
        (header("0.png", tarfile.GNUTYPE_SPARSE, 0), "a sparse file; pack it without --sparse"),
        (b"no tar" * 999, "is no tar file"),
    ):
        cut.write_bytes(content)
        with pytest.raises(InvalidInputError, match=message):
            list(iter_images(cut, on_error="skip"))
    with tarfile.open(cut, "w:gz") as made:  # which unpacks to all there is to memory
        long = tarfile.TarInfo("long")
        long.type, long.size = tarfile.XHDTYPE, 2**21
        made.fileobj.write(long.tobuf() + b"\0" * 2**21)
    with pytest.raises(InvalidInputError, match=r"damaged behind its beginning .a header of 2097152 bytes"):
        list(iter_raw(cut))
    write(cut, ("a.png", png(1)[:30]), ("b.png", png(2)))
    skipped: list[SkippedImage] = []
    assert [item.index for item in iter_images(cut, on_error="skip", skipped=skipped)] == [1]
    assert skipped[0].source == f"{cut}/a.png"


def test_samples_that_are_none_are_named(tmp_path):
    """Several images, one that comes again, no image, links; tars that are not there."""
    tar = tmp_path / "x.tar"
    for members, message in (
        ([("a.png", png(0)), ("a.jpg", png(1))], r"'.*x\.tar/a' holds several images \(png, jpg\)"),
        ([("a.1.png", png(0)), ("a.2.png", png(1))], r"several images \(1\.png, 2\.png\).*first dot"),
        (
            [(f"a.{n}.png", png(0)) for n in range(70)],
            r"several images \(0\.png, 1\.png, 2\.png, …\), or more",
        ),
        ([("a.png", png(0)), ("b.png", png(1)), ("a.cls", "1")], r"sample 'a' twice, of which 'a\.cls'"),
        ([("a.png", png(0)), ("a.PNG", png(1))], r"the member 'a\.PNG' twice"),
        ([("a.txt", "x"), ("README", "y")], r"x\.tar' holds no images"),
        ([], r"x\.tar' holds no images"),
    ):
        write(tar, *members)
        with pytest.raises(InvalidInputError, match=message):
            list(iter_raw(tar))
    write(tar, ("a.png", png(0)), ("b.txt", "x"), ("._a.png", b"mac"), ("__meta__", "y"))
    with pytest.warns(ClipRetrievalWarning, match=r"1 sample\(s\) of .* hold no image .* '.*x\.tar/b'"):
        assert len(list(iter_raw(tar))) == 1
    with tarfile.open(tar, "w") as made:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    with pytest.raises(InvalidInputError, match=r"'b\.png' in .* is a link"):
        list(iter_raw(tar))
    for missing, message in (
        ("no.tar", r"there is no tar file 'no\.tar'"),
        ("no-{0..3}.tar", r"there is no tar file 'no-0\.tar'"),
        ("no-*.tar", r"there is no tar file 'no-\*\.tar'"),
        ("no-{3..0}.tar", "must count up"),
        ("no-{0..9999999999}.tar", "at most"),
        ("no-{0..9999}-{0..9999}.tar", "at most"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            iter_raw(missing)
    with pytest.raises(InvalidInputError, match=r"holds no images.* Of its tar files, pass '.*/\*\.tar'"):
        iter_raw(tmp_path)
    for mixed in ([tar, "a.png"], np.array([str(tar)]), tmp_path.glob("x.tar")):
        with pytest.raises(InvalidInputError, match=r"item number 0 is the tar '.*x\.tar'.*read_tars"):
            list(iter_raw(mixed))
    for name in ("a[1]", "a1"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "0.tar", (f"{name}.png", png(0)))
    assert [raw.source for raw in iter_raw(f"{tmp_path}/a[1]/{{0..0}}.tar")] == [
        f"{tmp_path}/a[1]/0.tar/a[1].png"
    ]
    url = "http://u:{a,b}@h/x-{0..1}.tar?a={1,2}"
    assert read_tars(url).paths == tuple(url.replace("{0..1}", each) for each in "01")
    with pytest.raises(InvalidInputError, match="tars must be"):
        read_tars("x.zip")
    with pytest.raises(InvalidInputError, match="label must be"):
        read_tars(tar, label="")
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe.tar")
        with pytest.raises(InvalidInputError, match="cannot be read: it is not a regular file"):
            list(iter_raw(tmp_path / "pipe.tar"))
