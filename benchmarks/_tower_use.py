"""What a user does with a tower: fit, predict, save, and ask again in another process."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from clipretrieval import RetrievalClassifier, StagedEncoder

__all__ = ["used"]

CLASS_IMAGES, FITTED = 200, 0.75
"""Images of a class, and the share of them that is fitted on."""
_BYTES = 1 if sys.platform == "darwin" else 1024
"""What the peak of a process's memory is counted in."""


def used(name: str, folder: Path, count: int | None, threads: int) -> dict[str, Any]:
    """Fit on three quarters of a folder's images, answer for the others here and in another process.

    Parameters
    ----------
    folder : Path
        With a folder of images for each class.
    count : int, optional
        Images in all, at most; 200 of a class when left out.
    """
    known, asked = split(folder, count)
    with tempfile.TemporaryDirectory() as kept:
        first = _in_a_process(fit, name, known, asked, kept, threads)
        again = _in_a_process(ask, kept, asked, threads)
    right = sum(
        answer == Path(path).parent.name for answer, path in zip(first["answers"], asked, strict=True)
    )
    figures = {key: value for key, value in first.items() if key != "answers"}
    return {
        "fitted on": len(known),
        "asked": len(asked),
        "accuracy": right / len(asked),
        "the same in another process": again["answers"] == first["answers"],
        **figures,
        "s to load": again["s to load"],
    }


def split(folder: Path, count: int | None) -> tuple[list[str], list[str]]:
    """Return the files to fit on and those to ask about, as many of each class."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        sys.exit(f"{folder} holds no folders of classes")
    each = min(CLASS_IMAGES, (count or CLASS_IMAGES * len(classes)) // len(classes))
    known: list[str] = []
    asked: list[str] = []
    for place in classes:
        files = sorted(str(path) for path in place.iterdir() if path.is_file())[:each]
        ends = round(FITTED * len(files))
        known += files[:ends]
        asked += files[ends:]
    return known, asked


def fit(name: str, known: list[str], asked: list[str], kept: str, threads: int) -> dict[str, Any]:
    """Fit, answer and save."""
    torch.set_num_threads(threads)
    started = time.process_time()
    encoder = StagedEncoder(name, None, "mid")
    classifier = RetrievalClassifier(encoder).fit(known, [Path(path).parent.name for path in known])
    fitted = time.process_time()
    answers = classifier.predict(asked).tolist()
    ended = time.process_time()
    classifier.save(f"{kept}/classifier")
    return {
        "answers": answers,
        "plan": str(encoder.plan),
        "dim": encoder.dim,
        "s to fit": fitted - started,
        "ms an answer": 1000 * (ended - fitted) / len(asked),
        "peak MB": _peak(),
    }


def ask(kept: str, asked: list[str], threads: int) -> dict[str, Any]:
    """Load and answer."""
    torch.set_num_threads(threads)
    started = time.process_time()
    classifier = RetrievalClassifier.load(f"{kept}/classifier")
    loaded = time.process_time() - started
    return {"answers": classifier.predict(asked).tolist(), "s to load": loaded}


def _in_a_process(work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """Run something in a process of its own, whose memory is counted alone."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def _peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES / 2**20)
