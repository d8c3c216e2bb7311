"""What becomes of damaged and crafted folders of stores and classifiers: an error, right answers, or worse.

    python benchmarks/mutations.py --count 1000 --seed 0

Small stores (flat, lists, graph, codes) and a saved classifier are written once. Each mutation takes a copy
of one, damages one file as its kind allows (see `_damage`), opens the copy and asks it everything; what opens
is also written to, flushed and opened again. Half of the mutations leave the checksums alone, as a failing
disk does; the other half makes them right again, as an attacker would, and the folder is verified before it
is asked. What can come of it:

- an error of ours, by class;
- the right answer: all that was asked is as it was before the damage, or what an exact search finds, which
  answers where an index is damaged;
- another answer, where checksums were made right: what is stored is then another store, and a good one. Its
  distances must be those of its vectors, finite, ascending and of stored ids;
- WRONG: any other exception or warning, a crash, more than 20 seconds or 2 GiB, a distance that is not a
  number, or another answer although the checksums were left alone.

Prints a table, what went wrong, and how many went right; returns 1 if any went wrong.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from _damage import damage, rewrite_checksums

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import ClipRetrievalError, ClipRetrievalWarning
from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.faiss import factory as _factory

SUBJECTS = {"flat": "Flat", "lists": "IVF8,SQ8", "graph": "HNSW8", "codes": "PQ4x4", "classifier": None}
COUNT, DIM, K = 640, 8, 5
SECONDS, MOST_MEMORY = 20, 2 << 30


def vectors(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def make(folder: Path) -> None:
    """Write one of each subject."""
    ids = [f"id {place}" for place in range(COUNT)]
    labels = [f"label {place % 3}" for place in range(COUNT)]
    _factory.SMALLEST = 4  # so that small stores have indexes
    for name, index in SUBJECTS.items():
        if index is None:
            classifier = RetrievalClassifier(store="memory").fit(vectors(0, COUNT), labels)
            classifier.save(folder / name)
            continue
        with FaissStore(folder / name, index=index, recall=0.5) as store:
            store.upsert(ids, vectors(0, COUNT), labels, [{"place": place} for place in range(COUNT)])
            classes = [
                f"class {place}" for place in range(3000 if name == "flat" else 2)
            ]  # a long part, or none
            store.write_manifest({"model": "none", "classes": classes, "size": 3})
            if name == "graph":
                store.delete(ids[10:20])  # tombstones


def ask_store(store: Any) -> dict[str, Any]:
    """Return all that a store answers; raise AssertionError if it cannot be true."""
    near = store.search(vectors(1, 10), K)
    listed = sorted(name for each in store.scan() for name in each.ids.tolist())
    records = store.get(listed)
    assert len(listed) == store.count() == len(records)
    assert not np.isnan(near.distances).any(), "a distance is not a number"
    assert np.isfinite(records.vectors).all(), "a vector is not finite"
    assert set(near.ids[near.valid].tolist()) <= set(listed)
    if len(records):
        # np.diff of two infinities, where rows are padded, is not a number.
        assert all(row == sorted(row) for row in near.distances.tolist()), "distances do not ascend"
        truth = MemoryStore(store.metric)
        truth.upsert(records.ids.tolist(), records.vectors, records.labels)
        known = truth.search(vectors(1, 10), len(records))
        for row in range(10):
            exact = dict(zip(known.ids[row].tolist(), known.distances[row].tolist(), strict=True))
            found = [exact[name] for name in near.ids[row].tolist() if name]
            assert np.allclose(near.distances[row][: len(found)], found, rtol=1e-4, atol=1e-5), (
                "another distance"
            )
    return {
        "near": [near.ids.tolist(), near.distances.tolist(), near.labels.tolist()],
        "records": [
            records.ids.tolist(),
            records.vectors.tolist(),
            records.labels.tolist(),
            records.metadata,
        ],
        "manifest": store.read_manifest(),
        "metric": str(store.metric),
    }


def exactly(folder: Path, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return what a store would answer without an index; of a classifier, which has none, what it answers."""
    if name == "classifier":
        return found
    with FaissStore.load(folder) as store:
        ids, rows, labels, _ = found["records"]
        truth = MemoryStore(store.metric)
        truth.upsert(ids, rows, labels)
        near = truth.search(vectors(1, 10), K)
    return {**found, "near": [near.ids.tolist(), near.distances.tolist(), near.labels.tolist()]}


def ask_classifier(folder: Path) -> dict[str, Any]:
    classifier = RetrievalClassifier.load(folder)
    chances = classifier.predict_proba(vectors(1, 10))
    assert np.isfinite(chances).all(), "a chance is not a number"
    assert np.allclose(chances.sum(axis=1), 1)
    return {
        "chances": chances.tolist(),
        "classes": classifier.classes_.tolist(),
        "predictions": classifier.predict(vectors(1, 10)).tolist(),
        "store": ask_store(classifier.store_),
    }


def ask(folder: Path, name: str, verified: bool = False) -> dict[str, Any]:
    """Open what is in a folder, verify it where that is wanted, and return all that it answers."""
    if name == "classifier":
        return ask_classifier(folder)
    with FaissStore.load(folder) as store:
        if verified:
            store.verify()
        return ask_store(store)


def write(folder: Path, name: str) -> None:
    """Write to what is in a folder, and ask again."""
    if name == "classifier":
        classifier = RetrievalClassifier.load(folder)
        label = next(iter(classifier.classes_.tolist()), "x")
        classifier.partial_fit(vectors(2, 5), [label] * 5)
        classifier.save(folder)
        ask_classifier(folder)
        return
    with FaissStore.load(folder, read_only=False) as store:
        kind = store.get([next(iter(store.scan())).ids[0]]).labels[0] if store.count() else "x"
        store.upsert([f"new {place}" for place in range(20)], vectors(2, 20), [kind] * 20)
        store.delete(["new 3", "id 1"])
        ask_store(store)
    ask(folder, name)


def examine(folder: Path, name: str, right: list[dict[str, Any]], rewritten: bool) -> str:
    """Return what becomes of a damaged folder; what begins with WRONG went wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ClipRetrievalWarning)
        warnings.filterwarnings("ignore", "X does not have valid feature names")  # of names that were made up
        try:
            after = ask(folder, name, rewritten)  # who does not trust a folder verifies it
            same = after in right
            write(folder, name)
        except ClipRetrievalError as error:
            return type(error).__name__
        except Exception as error:  # noqa: BLE001  what is not an error of ours went wrong
            return f"WRONG: {type(error).__name__}: {str(error)[:200]}"
    if same:
        return "right answer"
    return "another answer" if rewritten else "WRONG: another answer"


def mutate(root: Path, number: int, seed: int, rewritten: bool) -> tuple[Path, str, str, str]:
    """Make a damaged copy; return it, and which subject, which file and what damage it has."""
    rng = np.random.default_rng([seed, number, rewritten])
    name = list(SUBJECTS)[number % len(SUBJECTS)]
    copy = root / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root / "whole" / name, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != "LOCK")
    path = files[rng.integers(len(files))]
    how = damage(path, rng)
    if rewritten:
        rewrite_checksums(copy)
    kind = f"{path.name.split('-')[0].split('.')[0]}{path.suffix}"
    return copy, name, kind, how


def work(arguments: argparse.Namespace) -> None:
    """Examine mutations from a number on, each in a line of output before and one after it."""
    root = Path(arguments.work)
    found = {name: ask(root / "whole" / name, name) for name in SUBJECTS}
    right = {name: [found[name], exactly(root / "whole" / name, name, found[name])] for name in SUBJECTS}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, used + MOST_MEMORY))
    _factory.SMALLEST = 4
    for number in range(arguments.start, 2 * arguments.count):
        rewritten = number >= arguments.count
        signal.alarm(0)
        copy, name, kind, how = mutate(root, number, arguments.seed, rewritten)
        print(json.dumps([number, name, kind, how]), flush=True)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)  # ends the process, also amid C++
        print(json.dumps(examine(copy, name, right[name], rewritten)), flush=True)


def run(root: Path, count: int, seed: int) -> list[tuple[bool, str, str, str, str]]:
    """Examine all mutations in processes that may die; return half, subject, file, damage and outcome."""
    found: list[tuple[bool, str, str, str, str]] = []
    command = [sys.executable, __file__, "--work", str(root), "--count", str(count), "--seed", str(seed)]
    while len(found) < 2 * count:
        with subprocess.Popen(
            [*command, "--start", str(len(found))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            output, errors = process.communicate()
        lines = [json.loads(line) for line in output.splitlines()]
        if not lines:
            raise RuntimeError(errors)
        for what, outcome in zip(lines[::2], lines[1::2], strict=False):
            found.append((what[0] >= count, *what[1:], outcome))
        if len(lines) % 2:
            number, *what = lines[-1]
            reason = (
                "took too long" if process.returncode == -signal.SIGALRM else f"died ({process.returncode})"
            )
            found.append((number >= count, *what, f"WRONG: {reason} {errors.strip()[-200:]}"))
    return found


def main() -> int:
    """Mutate as often as asked; return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="mutations of each half (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default 0)")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # of a process that examines
    parser.add_argument("--start", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "whole")
        found = run(Path(folder), arguments.count, arguments.seed)
    rows: Counter[tuple[bool, str, str, str]] = Counter()
    for rewritten, name, kind, _, outcome in found:
        rows[rewritten, name, kind, outcome.split(":")[0]] += 1
    print(f"{'checksums':<10} {'subject':<11} {'file':<16} {'outcome':<26} {'count':>5}")
    for (rewritten, name, kind, outcome), times in sorted(rows.items()):
        print(f"{'rewritten' if rewritten else 'kept':<10} {name:<11} {kind:<16} {outcome:<26} {times:>5}")
    for rewritten in (False, True):
        outcomes = Counter(each[-1].split(":")[0] for each in found if each[0] is rewritten)
        print(f"{'rewritten' if rewritten else 'kept':<10} {dict(outcomes.most_common())}")
    wrong = [each for each in found if each[-1].startswith("WRONG")]
    for rewritten, name, kind, how, outcome in wrong:
        print(f"{'rewritten' if rewritten else 'kept'}, {name}, {kind}, {how}: {outcome}")
    print(f"{len(found) - len(wrong)}/{len(found)} an error of ours or a right answer")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
