"""The example that writes scikit-learn's digits as class folders."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

SCRIPT = Path(__file__).parents[2] / "examples" / "digits_folders.py"


@pytest.fixture(scope="module")
def write_digits() -> Callable[..., Path]:
    """The example's own function."""
    function: Callable[..., Path] = runpy.run_path(str(SCRIPT))["write_digits"]
    return function


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_split_is_disjoint_and_labelled(write_digits: Callable[..., Path], tmp_path: Path) -> None:
    """Each class folder holds the asked number of scans of its own digit, none of them in both parts."""
    out = write_digits(tmp_path / "digits", train=4, test=3)
    target = load_digits().target
    seen: dict[str, list[int]] = {}
    for part, count in (("train", 4), ("test", 3)):
        for digit in range(10):
            scans = [int(path.stem) for path in (out / part / str(digit)).glob("*.png")]
            assert len(scans) == count
            assert set(target[scans]) == {digit}
            seen.setdefault(part, []).extend(scans)
    assert not set(seen["train"]) & set(seen["test"])


def test_a_picture_shows_its_scan(write_digits: Callable[..., Path], tmp_path: Path) -> None:
    """At its own size of 8×8 a picture holds the scan's values, stretched from 0–16 to 0–255."""
    out = write_digits(tmp_path / "digits", train=1, test=1, size=8)
    path = next((out / "train" / "7").glob("*.png"))
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        pixels = np.asarray(picture)
    expected = np.rint(load_digits().images[int(path.stem)] * 255 / 16)
    np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))


def test_the_seed_decides_the_split(write_digits: Callable[..., Path], tmp_path: Path) -> None:
    """The same seed writes the same files, and another seed other ones."""
    first, again, other = (
        contents(write_digits(tmp_path / name, train=2, test=1, seed=seed))
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert first == again
    assert first.keys() != other.keys()


def test_a_complete_folder_is_reused(write_digits: Callable[..., Path], tmp_path: Path) -> None:
    """A second call with the same settings leaves what is there untouched."""
    out = write_digits(tmp_path / "digits", train=1, test=1)
    path = next((out / "test" / "0").glob("*.png"))
    path.write_bytes(b"kept")
    assert write_digits(out, train=1, test=1) == out
    assert path.read_bytes() == b"kept"


def test_other_contents_are_refused(write_digits: Callable[..., Path], tmp_path: Path) -> None:
    """A folder that holds something else is neither overwritten nor mixed with the digits."""
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError):
        write_digits(tmp_path, train=1, test=1)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize("counts", [{"train": 0}, {"test": 0}, {"size": 0}, {"train": 174, "test": 1}])
def test_impossible_counts_are_refused(
    write_digits: Callable[..., Path], tmp_path: Path, counts: dict[str, int]
) -> None:
    """Counts below one, or more scans than a digit has, raise before anything is written."""
    with pytest.raises(ValueError, match="must be at"):
        write_digits(tmp_path / "digits", **counts)
    assert not list(tmp_path.iterdir())
