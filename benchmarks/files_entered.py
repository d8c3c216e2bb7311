"""Which files of the package an operation enters, and which of its classes a store or classifier is made of.

    python benchmarks/files_entered.py --json e.json

A file is entered when a function in it runs, in whatever thread. What runs at an import (modules, bodies of
classes, and functions that they call) does not count, nor does the Pinecone emulator, which stands for the
service. Every operation runs once before it is traced, with other objects, so that all imports are over. The
classifier has the CLIP that the package carries, stopped at ``mid``, and a FAISS folder.

Only public names are used, so that the same program measures any version: put its checkout on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import clipretrieval
from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.demo import KINDS, demo_model, draw_many
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore, PineconeStore, VectorStore
from clipretrieval.testing import PineconeEmulator

ROOT = Path(clipretrieval.__file__).parent
CLASSES = (RetrievalClassifier, FaissStore, ChromaStore, PineconeStore)
DIM = 16

Trace = Callable[[str, Callable[[], object]], None]
"""Runs an operation under its name."""


def main() -> None:
    """Run every operation, and print what each enters."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the lists here too")
    arguments = parser.parse_args()
    entered: dict[str, list[str]] = {}

    def run(_: str, operation: Callable[[], object]) -> None:
        operation()

    def trace(name: str, operation: Callable[[], object]) -> None:
        with traced() as files:
            operation()
        entered[name] = sorted(files)

    for way in (run, trace):
        with tempfile.TemporaryDirectory() as folder:
            classify(Path(folder), way)
            use_stores(Path(folder), way)
    found = {
        "version": clipretrieval.__version__,
        "files": len(list(ROOT.rglob("*.py"))),
        "entered": {name: {"count": len(files), "files": files} for name, files in entered.items()},
        "classes": {kind.__name__: own_classes(kind) for kind in CLASSES},
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(render(found))


@contextmanager
def traced() -> Iterator[set[str]]:
    """Collect the files of the package, relative to it, in which functions begin to run."""
    known: dict[str, str | None] = {}
    files: set[str] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        # Code of modules and class bodies is not optimized.
        if event != "call" or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return
        name = frame.f_code.co_filename
        if name not in known:
            known[name] = within_package(name)
        file = known[name]
        if file is not None and file not in files and not is_importing(frame):
            files.add(file)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def within_package(name: str) -> str | None:
    """Return a file's place in the package; None for one that is not there or is not to be counted."""
    path = Path(name)
    if not path.is_relative_to(ROOT):
        return None
    place = path.relative_to(ROOT)
    return None if place.parts[0] == "testing" else place.as_posix()


def is_importing(frame: FrameType) -> bool:
    """Tell whether a function was called by an import."""
    caller: FrameType | None = frame
    while caller is not None:
        if caller.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        caller = caller.f_back
    return False


def classify(folder: Path, trace: Trace) -> None:
    """Fit a classifier, ask it, add to it, measure it."""
    kinds = KINDS[:2]
    images, labels = draw_many(4, 0, kinds=kinds)
    more, more_labels = draw_many(2, 0, kinds=kinds, first=4)
    others, other_labels = draw_many(2, 0, kinds=kinds, first=6)
    encoder = StagedEncoder(demo_model(), stage="mid")
    options = {"path": str(folder / "classifier")}
    classifier = RetrievalClassifier(encoder, "faiss", k=3, store_options=options)
    trace("RetrievalClassifier.fit", lambda: classifier.fit(images, labels))
    trace("RetrievalClassifier.predict", lambda: classifier.predict(others))
    trace("RetrievalClassifier.partial_fit", lambda: classifier.partial_fit(more, more_labels))
    trace("RetrievalClassifier.evaluate", lambda: classifier.evaluate(others, other_labels))
    classifier.store_.close()


def use_stores(folder: Path, trace: Trace) -> None:
    """Write to each store that holds something already, and search it."""
    rows = np.random.default_rng(0).standard_normal((30, DIM), dtype=np.float32)
    with ExitStack() as stack:
        emulator = stack.enter_context(PineconeEmulator("benchmark"))
        stores: list[VectorStore] = [
            MemoryStore(),
            FaissStore(folder / "faiss"),
            ChromaStore(folder / "chroma"),
            PineconeStore("benchmark", host=emulator.host, api_key="benchmark"),
        ]
        for store in stores:
            stack.callback(store.close)
            name = type(store).__name__
            store.upsert(["first"], rows[:1], ["old"])
            trace(f"{name}.upsert", lambda store=store: upsert(store, rows))  # type: ignore[misc]
            store.flush()
            trace(f"{name}.search", lambda store=store: store.search(rows[:3], 5))  # type: ignore[misc]


def upsert(store: VectorStore, rows: Any) -> None:
    """Add records with metadata, and replace the first."""
    names = ["first", *map(str, range(1, len(rows)))]
    store.upsert(names, rows, ["new"] * len(rows), [{"row": row} for row in range(len(rows))])


def own_classes(kind: type) -> list[str]:
    """Return the classes of the package in the order in which a method is looked up."""
    package = f"{clipretrieval.__name__}."
    return [f"{each.__module__}.{each.__qualname__}" for each in kind.__mro__ if package in each.__module__]


def render(found: dict[str, Any]) -> str:
    """Write the counts, then the lists, as text."""
    lines = [f"clipretrieval {found['version']}: {found['files']} files", ""]
    lines += [f"{each['count']:4} {name}" for name, each in found["entered"].items()]
    for name, each in found["entered"].items():
        lines += ["", f"{name} enters {each['count']} files:", *(f"  {file}" for file in each["files"])]
    for name, classes in found["classes"].items():
        lines += ["", f"{name} consists of {len(classes)} classes:", *(f"  {each}" for each in classes)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
