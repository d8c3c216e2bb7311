"""Classify pictures by vectors of your own making: here, a histogram of colors, a function of a few lines.

Run as ``python examples/own_encoder.py TRAIN TEST --save FOLDER``, two folders with a sub-folder of pictures
for each class. Put your own model into `color_histogram`, and change the name and the version with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipretrieval import ClipRetrievalError, FunctionEncoder, RetrievalClassifier, compare

BINS = 6


def color_histogram(images: Sequence[Image.Image]) -> np.ndarray:
    """Return the square roots of the shares of BINS³ colors, shape (n, 216)."""
    rows = []
    for image in images:
        pixels = np.asarray(image.resize((64, 64))).reshape(-1, 3)
        counts, _ = np.histogramdd(pixels, bins=BINS, range=[(0, 256)] * 3)
        rows.append(np.sqrt(counts.ravel() / len(pixels)))
    return np.stack(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Classify pictures by vectors of your own making.")
    parser.add_argument("train", type=Path, help="folder with a sub-folder of images for each class")
    parser.add_argument("test", type=Path, help="another such folder, to classify")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the classifier there")
    options = parser.parse_args(arguments)
    encoder = FunctionEncoder(color_histogram, name="color-histogram", version=1)
    try:
        report = compare(options.train, options.test, encoder=encoder, heads=("votes", "discriminant"))
        for row in report.rows:
            print(f"{row.name:32} {row.report.accuracy:.1%} of {report.n_test} images")
        if options.save is not None:
            RetrievalClassifier(encoder, head="discriminant").fit(options.train).save(options.save)
            kept = RetrievalClassifier.load(options.save, encoder)  # the function itself is not saved
            print(f"{options.save}: {kept.store_.count()} images of {len(kept.classes_)} classes")
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
