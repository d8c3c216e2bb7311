"""Write scikit-learn's hand-written digits as class folders of PNG pictures.

Run as ``python examples/digits_folders.py OUT``. It gives the demo and the documentation a small, real
data set that needs no network: 1,797 scans of 8×8 grey values that scikit-learn carries. The pictures
go to ``OUT/train/<digit>/`` and ``OUT/test/<digit>/``, the layout that ``clipretrieval evaluate`` reads.
A folder that already holds the same split is left as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

SETTINGS = "digits.json"


def write_digits(out: str | Path, *, train: int = 120, test: int = 50, size: int = 32, seed: int = 0) -> Path:
    """Write a random split of the digits below `out` and return `out` as a path.

    Parameters
    ----------
    out : str or Path
        Folder to create. It appears only when it is complete.
    train, test : int
        Pictures a digit in each part; no scan is in both.
    size : int
        Height and width of the pictures in pixels, enlarged from 8 by bicubic interpolation.
    seed : int
        Decides which scans go where.

    Raises
    ------
    ValueError
        If a count or the size is below 1, or a digit has fewer than `train` + `test` scans.
    FileExistsError
        If `out` holds anything but the same split.
    """
    out = Path(out)
    settings = {"train": train, "test": test, "size": size, "seed": seed}
    if min(train, test, size) < 1:
        raise ValueError(f"train, test and size must be at least 1; got {train}, {test} and {size}")
    if _holds(out, settings):
        return out
    digits = load_digits()
    fewest = int(np.bincount(digits.target).min())
    if train + test > fewest:
        raise ValueError(f"train + test must be at most {fewest} pictures a digit; got {train + test}")

    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        rng = np.random.default_rng(seed)
        for digit in range(10):
            chosen = rng.permutation(np.flatnonzero(digits.target == digit))[: train + test]
            for place, index in enumerate(chosen):
                part = "train" if place < train else "test"
                folder = unfinished / part / str(digit)
                folder.mkdir(parents=True, exist_ok=True)
                _picture(digits.images[index], size).save(folder / f"{index:04d}.png")
        (unfinished / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        unfinished.chmod(0o755)
        os.replace(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return out


def _holds(out: Path, settings: dict[str, int]) -> bool:
    """Tell whether `out` is a complete split with these settings; refuse any other contents."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        if json.loads((out / SETTINGS).read_text(encoding="utf-8")) == settings:
            return True
    except (OSError, ValueError):
        pass
    raise FileExistsError(
        f"{out} exists and is not this split of the digits; remove it or choose another folder"
    )


def _picture(scan: npt.NDArray[np.float64], size: int) -> Image.Image:
    """Return an RGB picture of `size`×`size` pixels from an 8×8 scan with values 0 to 16."""
    grey = np.rint(scan * (255 / 16)).astype(np.uint8)
    return Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as PNG class folders.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create")
    parser.add_argument("--train", type=int, default=120, metavar="N", help="pictures a digit (120)")
    parser.add_argument("--test", type=int, default=50, metavar="N", help="pictures a digit (50)")
    parser.add_argument("--size", type=int, default=32, metavar="PIXELS", help="height and width (32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides the split (0)")
    options = parser.parse_args(arguments)
    try:
        out = write_digits(
            options.out, train=options.train, test=options.test, size=options.size, seed=options.seed
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{out}: {10 * options.train} training and {10 * options.test} test pictures")


if __name__ == "__main__":
    main()
