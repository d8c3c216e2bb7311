"""Answers to rely on: believable probabilities, sets that hold the true class, and "none of these".

Run as ``python examples/trust.py``: images are drawn, and the model is the one that the package carries. With
``--train TRAIN --held-out HELD_OUT --test TEST``, folders with a sub-folder of images for each class, it takes
yours.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sklearn.model_selection import train_test_split

from clipretrieval import ClipRetrievalError, RetrievalClassifier, StagedEncoder
from clipretrieval.demo import demo_model, write_folders
from clipretrieval.images import scan_folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Promise how often answers hold, and keep to it.")
    parser.add_argument("--train", type=Path, help="folder to fit (drawn when left out)")
    parser.add_argument("--held-out", type=Path, help="folder to calibrate and to conformalize with")
    parser.add_argument("--test", type=Path, help="folder to classify")
    parser.add_argument("--model", help="open_clip's name of a model, or local-dir:FOLDER (the demo's)")
    parser.add_argument("--stage", default="late", help="pixel, mid, late, final or a block (late)")
    parser.add_argument("--head", default="discriminant", help="votes, discriminant, … (discriminant)")
    parser.add_argument("--coverage", type=float, default=0.9, help="how often sets hold the class (0.9)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as name:
            folders = [options.train, options.held_out, options.test]
            if None in folders:
                drawn = write_folders(Path(name) / "a", train=60, test=60)
                more = write_folders(Path(name) / "b", train=1, test=30, seed=1)
                folders = [drawn / "train", drawn / "test", more / "test"]
            show(options, *folders)
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")


def show(options: argparse.Namespace, train: Path, held_out: Path, test: Path) -> None:
    """Fit, calibrate and conformalize, each with images of its own, and measure what was promised."""
    encoder = StagedEncoder(options.model or demo_model(), stage=options.stage)
    classifier = RetrievalClassifier(encoder, store="memory", head=options.head, k=20).fit(train)

    images = scan_folder(held_out)
    if images.labels is None:
        raise SystemExit(f"{held_out} has no sub-folders of images, one for each class")
    some, others, some_labels, other_labels = train_test_split(
        images.paths, images.labels, test_size=0.7, stratify=images.labels, random_state=0
    )
    classifier.calibrate(some, some_labels)
    report = classifier.calibration_
    if report is not None:
        print(f"calibration error {report.ece_before:.3f} before, {report.ece_after:.3f} after")
    classifier.conformalize(others, other_labels)

    asked = scan_folder(test)
    truth = list(asked.labels or ())
    labels, sets = classifier.predict_set(asked.paths, options.coverage)
    column = {label: place for place, label in enumerate(classifier.classes_.tolist())}
    held = [bool(row[column[label]]) for row, label in zip(sets, truth, strict=True)]
    print(
        f"{sum(held) / len(held):.1%} of the sets hold the class, of {sets.sum(axis=1).mean():.2f} classes each"
    )
    print(f"{(labels == truth).mean():.1%} of the answers are right")

    classifier.set_params(unknown="none of these", max_turned_away=0.05)
    found = classifier.predict(asked.paths)
    print(f"{(found == 'none of these').mean():.1%} of them are turned away")


if __name__ == "__main__":
    main()
