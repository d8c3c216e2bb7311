"""Add a class to a fitted classifier, and forget it again, without training.

Run as ``python examples/online_learning.py TRAIN TEST``, two folders with a sub-folder of pictures for each
class. The class that comes last is held back at first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipretrieval import ClipRetrievalError, RetrievalClassifier, StagedEncoder
from clipretrieval.images import scan_folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Add a class without training, and forget it.")
    parser.add_argument("train", type=Path, help="folder with a sub-folder of images for each class")
    parser.add_argument("test", type=Path, help="another such folder, to classify")
    parser.add_argument("--stage", default="pixel", help="pixel, mid, late, final or a block (pixel)")
    parser.add_argument("--k", type=int, default=3, help="neighbors that vote (3)")
    options = parser.parse_args(arguments)
    try:
        train = scan_folder(options.train)
        if train.labels is None:
            parser.error(f"{options.train} has no sub-folders of images, one for each class")
        late = train.classes[-1]
        pictures = list(zip(train.paths, train.labels, strict=True))
        classifier = RetrievalClassifier(StagedEncoder(stage=options.stage), k=options.k)

        classifier.fit([pair for pair in pictures if pair[1] != late])
        print(f"{len(classifier.classes_)} classes: {classifier.score(options.test):.1%}")

        classifier.partial_fit([pair for pair in pictures if pair[1] == late])
        print(f"with {late!r} added: {classifier.score(options.test):.1%} ({classifier.fit_report_})")

        print(classifier.forget(label=late))  # the store is asked again: none of them is found any more
        print(f"with {late!r} forgotten: {classifier.score(options.test):.1%}")
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
