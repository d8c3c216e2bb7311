"""Stop each image at the first stage that is sure, and see what that saves.

Run as ``python examples/cascade.py TRAIN TEST``, two folders with a sub-folder of images for each class. A
quarter of TRAIN is not fitted, but calibrated on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sklearn.model_selection import train_test_split

from clipretrieval import CascadeClassifier, ClipRetrievalError, StagedEncoder
from clipretrieval.images import scan_folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Stop each image at the first stage that is sure.")
    parser.add_argument("train", type=Path, help="folder with a sub-folder of images for each class")
    parser.add_argument("test", type=Path, help="another such folder, to classify")
    parser.add_argument("--model", default="RN50", help="open_clip's name of a model, or local-dir:FOLDER")
    parser.add_argument("--stages", nargs="+", default=["layer1:grid", "layer2:grid", "mid", "late"])
    parser.add_argument("--head", default="discriminant", help="votes, discriminant, … (discriminant)")
    parser.add_argument("--share", type=float, default=0.6, help="of the last stage's arithmetic (0.6)")
    options = parser.parse_args(arguments)
    try:
        train = scan_folder(options.train)
        if train.labels is None:
            parser.error(f"{options.train} has no sub-folders of images, one for each class")
        fitted, held_out, labels, held_out_labels = train_test_split(
            train.paths, train.labels, test_size=0.25, stratify=train.labels, random_state=0
        )
        cascade = CascadeClassifier(StagedEncoder(options.model), options.stages, head=options.head)
        cascade.fit(fitted, labels)

        # A budget works with any number of images; a promise, max_loss=0.005, takes 639 or more.
        whole = cascade.encoder.multiply_adds(options.stages[-1])
        cascade.calibrate(held_out, held_out_labels, budget=options.share * whole)
        report = cascade.evaluate(options.test)
        for each in report.exits:
            print(f"{each.stage}: {each.left} images left, {each.image_ms:.1f} ms each")
        print(
            f"accuracy {report.accuracy:.1%}, {report.arithmetic:.0%} of the arithmetic; the last stage "
            f"alone {report.exits[-1].accuracy_alone:.1%}"
        )
        for explanation in cascade.explain(sorted(options.test.glob("*/*"))[:1]):
            print(explanation)
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
