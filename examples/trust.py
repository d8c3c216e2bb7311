"""Answers to rely on: calibrated probabilities, prediction sets, and "none of these".

Run as ``python examples/trust.py``: images are drawn, and the model is the one that the package carries. As
many are fitted as are calibrated on, conformalized with, and asked about.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from clipretrieval import ClipRetrievalError, RetrievalClassifier, StagedEncoder
from clipretrieval.demo import KINDS, demo_model, draw


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Promise how often answers hold, and keep to it.")
    parser.add_argument("--stage", default="late", help="pixel, mid, late, final or a block (late)")
    parser.add_argument("--head", default="discriminant", help="votes, discriminant, … (discriminant)")
    parser.add_argument("--coverage", type=float, default=0.9, help="how often sets hold the class (0.9)")
    parser.add_argument("--each", type=int, default=40, help="images of each kind, to fit (40)")
    options = parser.parse_args(arguments)
    known, unknown = list(KINDS)[:-2], list(KINDS)[-2:]
    kinds = [kind for kind in known for _ in range(options.each)]
    fitted, some, others, asked = (
        [draw(kind, seed + len(kinds) * part) for seed, kind in enumerate(kinds)] for part in range(4)
    )
    try:
        encoder = StagedEncoder(demo_model(), stage=options.stage)
        classifier = RetrievalClassifier(encoder, store="memory", head=options.head, k=20).fit(fitted, kinds)
        classifier.calibrate(some, kinds)
        print(classifier.calibration_)
        classifier.conformalize(others, kinds)
        labels, sets = classifier.predict_set(asked, options.coverage)
        column = [classifier.classes_.tolist().index(kind) for kind in kinds]
        held = sets[np.arange(len(kinds)), column].mean()
        print(f"{held:.1%} of the sets hold the class, of {sets.sum(axis=1).mean():.2f} classes each")
        print(f"{(labels == kinds).mean():.1%} of the answers are right")

        classifier.set_params(unknown="none of these", max_turned_away=0.05)
        strange = [draw(kind, seed) for kind in unknown for seed in range(options.each)]
        print(classifier.evaluate(asked, kinds, unknown_images=strange).unknown)
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
