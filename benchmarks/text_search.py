"""How many of the images that a text finds are of it: the precision of the ten nearest to a class's name.

    python benchmarks/text_search.py IMAGES --model local-dir:MODEL --json t.json

IMAGES has a folder for each class. They are stored at ``final`` in one index that the cosine ranks, and in
one of raw vectors under ``l2``, which `search_text` ranks by the cosine all the same.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.demo import demo_model
from clipretrieval.prompts import PHOTO_PROMPT

TEMPLATES = {"the name": "{}", "a photo of": PHOTO_PROMPT}


def main() -> None:
    """Store the images, search for each class's name, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="folder with a folder for each class")
    parser.add_argument("--model", default=demo_model())
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    encoder = StagedEncoder(arguments.model, stage="final")
    found: dict[str, Any] = {}
    for metric in ("cosine", "l2"):
        classifier = RetrievalClassifier(encoder, store="memory", metric=metric).fit(arguments.images)
        names = classifier.classes_.tolist()
        for way, template in TEMPLATES.items():
            started = time.process_time()
            near = classifier.search_text(names, arguments.k, templates=template)
            seconds = time.process_time() - started
            right = (near.labels == np.array(names, dtype=object)[:, None]).mean(axis=1)
            found[f"{metric}, {way}"] = {
                "stored": classifier.store_.count(),
                f"precision@{arguments.k}": float(right.mean()),
                "of each": dict(zip(names, right.tolist(), strict=True)),
                "processor_s": seconds,
            }
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
