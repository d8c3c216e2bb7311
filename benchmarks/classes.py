"""What questions and changes cost a classifier as its classes grow in number, over as many vectors.

    python benchmarks/classes.py --json classes.json
    python benchmarks/classes.py --classes 10 1000 50000 --heads votes discriminant quadratic

Each number of classes and each head has a process and a `FaissStore` folder of its own, in turns, round by
round; a step's neighbor search is measured beside it. Prints seconds of the processor, the least of the
rounds, and the most memory that a step allocated (by tracemalloc, in a call of its own; FAISS's is not
counted). A run that is cut short keeps its rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _clusters import clustered
from _findings import Findings, markdown_table

from clipretrieval import RetrievalClassifier

ASKED, SINGLES = 1000, 10
HEADS = ("votes", "discriminant", "quadratic", "ridge")
Steps = dict[str, tuple[int, Callable[[int], object]]]


def measured(head: str, classes: int, count: int, dim: int) -> dict[str, dict[str, float]]:
    """Fit vectors of so many classes, and return what each step costs: `seconds`, and `mb` of memory."""
    rows, more = clustered(count, dim, ASKED + SINGLES + 2)
    names = [f"class {place % classes}" for place in range(count)]
    ids = [f"id {place}" for place in range(count)]
    queries, new = more[:ASKED], more[ASKED:]
    with tempfile.TemporaryDirectory(dir=".") as work:
        options = {"path": str(Path(work) / "store")}
        classifier = RetrievalClassifier(store="faiss", store_options=options, head=head)
        classifier.fit_vectors(rows, names, ids)

        def one(call: Callable[[Any], object]) -> tuple[int, Callable[[int], object]]:
            return SINGLES, lambda place: call(queries[place : place + 1])

        def add(place: int) -> object:
            return classifier.partial_fit_vectors(
                new[place : place + 1], names[place : place + 1], [f"new {place}"]
            )

        steps: Steps = {
            "kneighbors of one": one(classifier.kneighbors),
            "predict of one": one(classifier.predict),
            "kneighbors of 1,000": (1, lambda place: classifier.kneighbors(queries)),
            "predict of 1,000": (1, lambda place: classifier.predict(queries)),
            "predict_proba of 1,000": (1, lambda place: classifier.predict_proba(queries)),
            "partial_fit of one": (SINGLES, add),
            "forget of 1,000": (1, lambda place: classifier.forget(ids[place * ASKED : (place + 1) * ASKED])),
        }
        if head == "votes":
            steps["predict_proba of 1,000, sparse"] = (
                1,
                lambda place: classifier.predict_proba(queries, sparse=True),
            )
        add(SINGLES + 1)  # builds lists, where it is time for them
        classifier.predict(queries)  # what is read once has been read
        return {name: cost(times, call) for name, (times, call) in steps.items()}


def cost(times: int, call: Callable[[int], object]) -> dict[str, float]:
    """Return the seconds of one of so many calls, and the memory of another."""
    tracemalloc.start()
    call(0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    started = time.process_time()
    for place in range(1, times + 1):
        call(place)
    return {"seconds": (time.process_time() - started) / times, "mb": most / 1e6}


def render(rows: list[dict[str, Any]]) -> str:
    """Write a table for each head, with a column for each number of classes."""
    parts = ["Processor seconds (of all rounds the least) / MB allocated (the most)."]
    for head in dict.fromkeys(row["head"] for row in rows):
        counts = sorted({row["classes"] for row in rows if row["head"] == head})
        cells: dict[str, list[str]] = {}
        for classes in counts:
            found = [row["costs"] for row in rows if (row["head"], row["classes"]) == (head, classes)]
            for step in found[0]:
                seconds = min(each[step]["seconds"] for each in found)
                most = max(each[step]["mb"] for each in found)
                cells.setdefault(step, []).append(f"{seconds:.3g} / {most:.3g}")
        lines = [[step, *values] for step, values in cells.items()]
        table = markdown_table(["", *(f"{count:,} classes" for count in counts)], lines)
        parts.append(f'head="{head}"\n\n{table}')
    return "\n\n".join(parts)


def main() -> None:
    """Measure each head with each number of classes and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[10, 50_000], help="numbers of them (default 10 50000)"
    )
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=["votes", "discriminant"])
    parser.add_argument("--count", type=int, default=100_000, help="vectors that are stored (default 100000)")
    parser.add_argument("--dim", type=int, default=512, help="dimensions (default 512)")
    parser.add_argument("--rounds", type=int, default=2, help="how often all is measured (default twice)")
    parser.add_argument("--json", type=Path, help="keep the figures there, and tables beside it (.md)")
    parser.add_argument("--child", nargs=2, metavar=("HEAD", "CLASSES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    count, dim = arguments.count, arguments.dim
    if count < 2 * ASKED or max(arguments.classes) > count:
        parser.error(f"--count must be {2 * ASKED:,} at least, and no less than --classes")
    if arguments.child:
        head, classes = arguments.child
        print(json.dumps(measured(head, int(classes), count, dim)))
        return
    # Threads that wait for each other would count.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with Findings(arguments.json, render, count=count, dim=dim) as found:
        for number in range(arguments.rounds):
            for head in arguments.heads:
                for classes in arguments.classes:
                    command = [sys.executable, __file__, "--count", str(count), "--dim", str(dim)]
                    command += ["--classes", str(classes), "--child", head, str(classes)]
                    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
                    found.add(head=head, classes=classes, round=number, costs=json.loads(done.stdout))


if __name__ == "__main__":
    main()
