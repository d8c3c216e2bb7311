"""Put retrieval beside CLIP's own zero-shot answer, which knows the classes' names and no pictures.

Run as ``python examples/zero_shot.py TRAIN TEST``, two folders with a sub-folder of pictures for each class.
The sub-folders' names are the classes' names. OpenAI's RN50 is fetched the first time; ``--model
local-dir:FOLDER`` reads a model of your own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipretrieval import ClipRetrievalError, RetrievalClassifier, StagedEncoder, ZeroShotClassifier
from clipretrieval.images import scan_folder
from clipretrieval.prompts import PHOTO_PROMPT


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare retrieval with CLIP's zero-shot answer.")
    parser.add_argument("train", type=Path, help="folder with a sub-folder of images for each class")
    parser.add_argument("test", type=Path, help="another such folder, to classify")
    parser.add_argument("--model", default="RN50", help="as StagedEncoder takes it (RN50)")
    parser.add_argument("--pretrained", default="openai", help="tag or checkpoint (openai)")
    parser.add_argument("--stage", default="late", help="where retrieval stops (late)")
    parser.add_argument("--k", type=int, default=1, help="neighbors that vote (1)")
    options = parser.parse_args(arguments)
    try:
        encoder = StagedEncoder(options.model, options.pretrained, options.stage)
        by_name = ZeroShotClassifier(encoder, scan_folder(options.train).classes, templates=PHOTO_PROMPT)
        by_neighbours = RetrievalClassifier(encoder, k=options.k).fit(options.train)
        for name, classifier in (("zero-shot", by_name), (f"{options.stage}, k={options.k}", by_neighbours)):
            report = classifier.evaluate(options.test)
            low, high = report.accuracy_interval
            print(f"{name:14} {report.accuracy:.1%} of {report.n_test} images ({low:.1%} to {high:.1%})")
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
