"""A process that changes a store beside the test's own, and stops where the test comes in between.

``python second_writer.py STORE OPTIONS ACTION STOP FOLDER`` opens a store and changes it. STOP is ``opened``
or ``encoding``: there it makes the file ``stopped`` in FOLDER and waits for the file ``go``. At the end it
prints the classes that its classifier knows, or the class of the error.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipretrieval import ClipRetrievalError, RetrievalClassifier
from clipretrieval.stores import create_store

FAR = 1000.0


class Shades:
    """An encoder of two versions: what the second one encodes lies far from what the first does."""

    dim = 3

    def __init__(self, version: int = 1, stop: Any = None) -> None:
        self.fingerprint = {"encoder": "Shades", "version": version, "dim": 3}
        self._offset, self._stop = FAR * (version - 1), stop

    def encode(self, images: Any) -> Any:
        if self._stop is not None:
            self._stop()
        means = [np.asarray(image).mean((0, 1)) + self._offset for image in images]
        return np.stack(means).astype(np.float32)


def shade(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (number, 255 - number, 40))


def halt(folder: Path) -> None:
    """Tell the test that this process has come so far, and wait until it may go on."""
    (folder / "stopped").touch()
    deadline = time.monotonic() + 60
    while not (folder / "go").exists():
        assert time.monotonic() < deadline, "nobody let this process go on"
        time.sleep(0.01)


def change(classifier: RetrievalClassifier, action: str) -> list[str]:
    """Do what the action says with shades 1 and 2, labelled "one"; return the classes known then."""
    images, labels = [shade(1), shade(2)], ["one", "one"]
    if action == "partial_fit":
        classifier.partial_fit(images, labels)
    elif action == "forget":
        classifier.forget(label="start")
    elif action == "relabel":
        ids = [name for listing in classifier.store_.scan("start") for name in listing.ids]  # type: ignore[attr-defined]
        classifier.relabel(ids, "one")
    else:
        classifier.fit(images, labels, **({} if action == "fit" else {action: True}))
    return list(map(str, classifier.classes_))


def main(store: str, options: str, action: str, stop: str, folder: str) -> None:
    with create_store(store, **json.loads(options)) as opened:  # type: ignore[attr-defined]
        encoder = Shades(stop=(lambda: halt(Path(folder))) if stop == "encoding" else None)
        known = RetrievalClassifier.from_store(opened, encoder) if opened.count() else None
        if stop == "opened":
            halt(Path(folder))
        try:
            print(json.dumps(change(known or RetrievalClassifier(encoder, opened), action)))
        except ClipRetrievalError as error:
            print(json.dumps(type(error).__name__))


if __name__ == "__main__":
    main(*sys.argv[1:])
