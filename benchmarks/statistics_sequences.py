"""Whether class statistics follow random sequences of changes exactly, some of them cut short by SIGKILL.

    python benchmarks/statistics_sequences.py --sequences 1000 --kills 20
    python benchmarks/statistics_sequences.py --sequences 100 --kills 5 --store chroma

Each sequence adds, forgets and relabels, on a store in memory, in a FAISS folder or in a Chroma folder, with
each head in turn. Its statistics have to equal a fresh fit's to 1e-9, and its answers to be the same.
For the kills, a process that changes a folder is killed, the folder opened, and fitted with ``resume=True``.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

from clipretrieval.stores.registry import create_store
from clipretrieval.testing.sequences import Deviation, kill_sequences, run_sequence

EXACT = 1e-9
STORES = ("memory", "faiss", "chroma")


def main() -> int:
    """Run and kill as often as asked; return 1 if anything deviates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=1000, help="without a kill (default 1000)")
    parser.add_argument("--kills", type=int, default=20, help="with one (default 20)")
    parser.add_argument("--store", choices=STORES, action="append", help="default: all three in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the first sequence (default 0)")
    arguments = parser.parse_args()
    print(f"python {' '.join(sys.argv)}  ({platform.processor() or platform.machine()})", flush=True)
    stores = arguments.store or list(STORES)
    wrong = 0
    for place, store in enumerate(stores):
        started = time.monotonic()
        seeds = range(arguments.seed + place, arguments.seed + arguments.sequences, len(stores))
        found = [_run(store, seed) for seed in seeds]
        wrong += _tell(f"{store}: {len(seeds)} sequences", found, time.monotonic() - started)
    folders = [store for store in stores if store != "memory"]
    for place, store in enumerate(folders):
        started = time.monotonic()
        seeds = range(arguments.seed + place, arguments.seed + arguments.kills, len(folders))
        found = [each for seed in seeds for each in _kill(store, seed)]
        what = f"{store}: {len(seeds)} kills, {len(found)} comparisons"
        wrong += _tell(what, found, time.monotonic() - started)
    return int(wrong > 0)


def _kill(store: str, seed: int) -> list[Deviation]:
    with tempfile.TemporaryDirectory() as folder:
        return list(kill_sequences(store, {"path": str(Path(folder) / "store")}, seed=seed))


def _run(store: str, seed: int) -> Deviation:
    if store == "memory":
        return run_sequence(create_store(store), seed)
    with tempfile.TemporaryDirectory() as folder:
        options = {"path": str(Path(folder) / "store")}
        return run_sequence(create_store(store, **options), seed, options={"name": store, **options})


def _tell(what: str, found: list[Deviation], seconds: float) -> int:
    """Print what came of it; return how many deviate."""
    wrong = sum(each.error > EXACT or each.answers > 0 for each in found)
    error = max((each.error for each in found), default=0.0)
    answers = sum(each.answers for each in found)
    print(
        f"{what}: {wrong} deviate; greatest error {error:.1e}; {answers} answers differ; {seconds:.0f} s",
        flush=True,
    )
    return wrong


if __name__ == "__main__":
    sys.exit(main())
