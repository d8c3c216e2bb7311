"""Classify pictures of your own by the nearest ones in a folder that has a sub-folder for each class.

Run as ``python examples/own_folder.py TRAIN PICTURE [PICTURE …] --save FOLDER``. The ``pixel`` stage, the
default, needs no weights and no network; with ``--stage late`` OpenAI's RN50 is fetched the first time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipretrieval import ClipRetrievalError, RetrievalClassifier, StagedEncoder


def show_neighbours(classifier: RetrievalClassifier, pictures: Sequence[Path]) -> None:
    """Print each picture's class, and below it the stored pictures that voted, nearest first."""
    near = classifier.kneighbors(pictures)
    for row, (picture, label) in enumerate(zip(pictures, classifier.predict(pictures), strict=True)):
        print(f"{picture}: {label}")
        records = classifier.store_.get(near.ids[row].tolist())  # padding is in no store, so it is left out
        for distance, neighbour, metadata in zip(
            near.distances[row], records.labels, records.metadata, strict=False
        ):
            print(f"    {distance:10.4g}  {neighbour}  {metadata['source']}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Classify pictures by the nearest ones in a folder.")
    parser.add_argument("train", type=Path, help="folder with a sub-folder of images for each class")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="image to classify")
    parser.add_argument("--model", default="RN50", help="as StagedEncoder takes it (RN50)")
    parser.add_argument("--pretrained", default="openai", help="tag or checkpoint (openai)")
    parser.add_argument("--stage", default="pixel", help="pixel, mid, late, final or a block (pixel)")
    parser.add_argument("--k", type=int, default=3, help="neighbors that vote (3)")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the classifier there")
    options = parser.parse_args(arguments)
    try:
        encoder = StagedEncoder(options.model, options.pretrained, options.stage)
        classifier = RetrievalClassifier(encoder, k=options.k).fit(options.train)
        if options.save is not None:
            classifier.save(options.save)
            classifier = RetrievalClassifier.load(options.save)
        show_neighbours(classifier, options.pictures)
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
