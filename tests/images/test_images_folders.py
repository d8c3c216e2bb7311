"""Folders of pictures and the rules by which they are scanned."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from clipretrieval.errors import ClipRetrievalWarning, InvalidInputError
from clipretrieval.images import ImageFolder, count_hint, iter_images, iter_raw, scan_folder
from clipretrieval.images.folders import list_images


def draw(*paths: Path) -> None:
    """Write a small picture to each path, making its folders."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "red").save(path, "PNG")


def names(folder: ImageFolder) -> list[str]:
    """The pictures' paths below the root."""
    return [path.relative_to(folder.root).as_posix() for path in folder.paths]


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    """Classes and the files in them are sorted, whatever their depth, and carry their folder's name."""
    draw(
        *(tmp_path / name for name in ("dog/b.png", "dog/a.JPG", "cat/x/y/z.WebP", "cat/x.bmp", "dog/.d.png"))
    )
    draw(tmp_path / ".hidden" / "e.png", tmp_path / "dog" / ".cache" / "f.png")
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    folder = scan_folder(tmp_path)
    assert names(folder) == ["cat/x/y/z.WebP", "cat/x.bmp", "dog/a.JPG", "dog/b.png"]
    assert folder.labels == ("cat", "cat", "dog", "dog")
    assert folder.classes == ("cat", "dog")
    assert (folder.root, len(folder)) == (tmp_path, 4)


@pytest.mark.parametrize("kind", [str, Path, scan_folder])
def test_a_labelled_folder_is_a_source(kind: type, tmp_path: Path) -> None:
    """A folder's path, or its scan, yields its pictures with labels and paths."""
    draw(tmp_path / "dog" / "a.png", tmp_path / "cat" / "b.png")
    found = list(iter_images(kind(tmp_path)))
    assert [item.label for item in found] == ["cat", "dog"]
    assert [item.source for item in found] == [
        str(tmp_path / "cat" / "b.png"),
        str(tmp_path / "dog" / "a.png"),
    ]
    assert [item.index for item in found] == [0, 1]
    assert count_hint(kind(tmp_path)) == 2


def test_explicit_labels_replace_the_folders(tmp_path: Path) -> None:
    """Labels that are passed beside a labelled folder win, and their number is checked at the call."""
    draw(tmp_path / "dog" / "a.png", tmp_path / "cat" / "b.png")
    assert [raw.label for raw in iter_raw(tmp_path, [4, 5])] == [4, 5]
    with pytest.raises(InvalidInputError, match="2 images but 3 labels"):
        iter_raw(tmp_path, [4, 5, 6])


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    """Without class folders the folder's own pictures come sorted, and without labels."""
    draw(tmp_path / "b.png", tmp_path / "a.png")
    (tmp_path / "nothing").mkdir()
    folder = scan_folder(tmp_path)
    assert (names(folder), folder.labels, folder.classes) == (["a.png", "b.png"], None, ())
    assert [raw.label for raw in iter_raw(tmp_path)] == [None, None]


def test_pictures_beside_class_folders_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """Pictures in the root of a labelled folder are ignored, and the warning counts them."""
    draw(tmp_path / "dog" / "a.png", tmp_path / "stray.png")
    with pytest.warns(ClipRetrievalWarning, match=r"1 image\(s\) beside the class folders") as caught:
        folder = scan_folder(tmp_path)
    assert caught[0].filename == __file__
    assert names(folder) == ["dog/a.png"]


def test_class_folders_without_pictures_are_named_in_a_warning(tmp_path: Path) -> None:
    """An empty class folder is no class, and the warning names it."""
    draw(tmp_path / "dog" / "a.png")
    (tmp_path / "unicorn" / "deep").mkdir(parents=True)
    with pytest.warns(ClipRetrievalWarning, match="'unicorn'"):
        folder = scan_folder(tmp_path)
    assert folder.classes == ("dog",)
    assert count_hint(tmp_path) == 1


@pytest.mark.parametrize("use", [scan_folder, iter_raw, count_hint])
def test_empty_and_missing_folders_are_refused(use: type, tmp_path: Path) -> None:
    """The error names the folder, and for one without pictures the extensions that were looked for."""
    (tmp_path / "text.txt").write_text("no picture")
    for path, expected in ((tmp_path, r"\.jpg .*\.png "), (tmp_path / "missing", "there is no folder")):
        with pytest.raises(InvalidInputError, match=expected) as caught:
            use(path)
        assert repr(str(path)) in str(caught.value)
    for place, expected in (("", "must not be empty"), ("x" * 5000, "too long for a path: 'xxx")):
        with pytest.raises(InvalidInputError, match=expected):
            use(place)


def test_formats_that_pillow_cannot_decode_by_itself_are_not_looked_for(tmp_path: Path) -> None:
    """HDF5, MPEG, PDF and PostScript files in a folder are no pictures."""
    draw(tmp_path / "a.png", tmp_path / "b.h5", tmp_path / "c.mpg", tmp_path / "d.pdf", tmp_path / "e.eps")
    assert names(scan_folder(tmp_path)) == ["a.png"]


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    """Links to folders count once a class; links in circles and to themselves do no harm."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    draw(root / "dog" / "a.png", elsewhere / "b.png")
    (root / "dog" / "again").symlink_to(root / "dog")
    (root / "dog" / "up").symlink_to(root)
    (root / "dog" / "more").symlink_to(elsewhere)
    (root / "dog" / "zmore").symlink_to(elsewhere)
    (root / "dog" / "self").symlink_to("self")
    (elsewhere / "back").symlink_to(root / "dog")
    assert names(scan_folder(root)) == ["dog/a.png", "dog/more/b.png"]
    (root / "whole").symlink_to(root)
    with pytest.warns(ClipRetrievalWarning, match="'whole'"):
        assert names(scan_folder(root)) == ["dog/a.png", "dog/more/b.png"]


def test_broken_links_named_like_pictures_are_left_to_decoding(tmp_path: Path) -> None:
    """A picture that a link fails to reach is reported as such, not silently lost."""
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("gone.png")
    (tmp_path / "c.png").symlink_to("c.png")
    skipped: list = []
    assert [item.index for item in iter_images(tmp_path, on_error="skip", skipped=skipped)] == [0]
    assert [(item.index, item.source) for item in skipped] == [
        (1, str(tmp_path / "b.png")),
        (2, str(tmp_path / "c.png")),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_names_that_are_not_text_are_scanned(tmp_path: Path) -> None:
    """A file name that is not UTF-8 is decoded like any other."""
    draw(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")))
    assert [item.image.size for item in iter_images(tmp_path)] == [(3, 2)]


def test_folders_that_cannot_be_listed_are_refused(tmp_path: Path) -> None:
    """A class folder without permission is an error, not an empty class."""
    draw(tmp_path / "dog" / "a.png", tmp_path / "cat" / "b.png")
    (tmp_path / "cat").chmod(0o000)
    if os.access(tmp_path / "cat", os.R_OK):
        pytest.skip("this user may list every folder")
    try:
        with pytest.raises(InvalidInputError, match=r"cat.*Permission denied"):
            scan_folder(tmp_path)
    finally:
        (tmp_path / "cat").chmod(0o700)


def test_the_parent_of_train_and_test_is_remarked_on(tmp_path: Path, class_folder: Path) -> None:
    """Whoever passes the folder above by mistake hears that its two parts were taken for classes."""
    with pytest.warns(ClipRetrievalWarning, match="'train' and 'test', which were taken for classes"):
        found = scan_folder(class_folder)
    assert found.classes == ("test", "train")


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "@Recycle", "__MACOSX", "$RECYCLE.BIN", "lost+found", ".thumbnails", "_removed"],
)
def test_folders_that_are_no_classes_are_passed_over(tmp_path: Path, name: str) -> None:
    """They are no class, nor are the images in them those of a class, and nothing is said of them."""
    draw(*(tmp_path / place / "a.png" for place in ("dog", name, f"dog/{name}", f"dog/{name}/b.png")))
    folder = scan_folder(tmp_path)
    assert (folder.classes, names(folder)) == (("dog",), ["dog/a.png"])
    assert [path.name for path in list_images(tmp_path)] == ["a.png"]
