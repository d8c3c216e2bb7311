"""Find labels that are wrong, and copies, in a folder of images; without a folder, in drawn ones.

Run as ``python examples/audit.py`` or ``python examples/audit.py IMAGES TEST``, folders with a sub-folder
of images for each class. Drawn images are of ten kinds, a few of them put into another kind's folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clipretrieval import ClipRetrievalError, StagedEncoder, audit
from clipretrieval.demo import demo_model, write_folders


def misplace(folder: Path, every: int = 20) -> int:
    """Move every so many images into the folder of the next class, and return how many that were."""
    classes = sorted(folder.iterdir())
    moved = sorted(folder.glob("*/*"))[::every]
    for path in moved:
        target = classes[(classes.index(path.parent) + 1) % len(classes)]
        path.rename(target / f"from-{path.parent.name}-{path.name}")
    return len(moved)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Find wrong labels and copies in a folder of images.")
    parser.add_argument("images", type=Path, nargs="?", help="folder with a sub-folder for each class")
    parser.add_argument("test", type=Path, nargs="?", help="images that must not be among them")
    parser.add_argument("--model", default=demo_model(), help="open_clip's name, or local-dir:FOLDER")
    parser.add_argument("--per-kind", type=int, default=40, help="drawn images of each kind (40)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as drawn:
            images = options.images
            if images is None:
                images = write_folders(Path(drawn, "drawn"), train=options.per_kind, test=1) / "train"
                print(f"{misplace(images)} images were put into the wrong folder")
            report = audit(images, encoder=StagedEncoder(options.model, stage="mid"), X_test=options.test)
        print(report)
        for finding in report.of("label"):
            print(f"mv {finding.source} to {finding.suggested} ({finding.probability:.0%})")
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
