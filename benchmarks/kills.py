"""How often a store survives SIGKILL amid its writes with all that was flushed.

    python benchmarks/kills.py --store chroma --times 50
    python benchmarks/kills.py --store chroma --times 50 --first
    python benchmarks/kills.py --store faiss --times 50 --during compact
    PGPASSWORD=… python benchmarks/kills.py --store pgvector --conninfo "host=… user=… dbname=…"

Prints what each kill left, and at the end how many of them left nothing lost. With ``--first``, each process
is killed amid the first upsert into a store of its own, which must leave all of its records or none; with
``--during``, amid one flush of many changes, a compaction, or the first flush to a folder of format 1, which
must leave what was before or what is after it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

from _changes import AFTER, BEFORE, CHANGES, kill_changes

from clipretrieval.testing.kills import GREAT, kill_first_upserts, kill_writers


def main() -> int:
    """Kill as often as asked; return 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=["faiss", "chroma", "lance", "pgvector"], required=True)
    parser.add_argument("--conninfo", default="", help="of a database for pgvector, where tables are left")
    parser.add_argument("--times", type=int, default=50, help="kills (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--first", action="store_true", help="kill first upserts into empty stores")
    parser.add_argument("--during", choices=CHANGES, help="kill such a change of a FaissStore's folder")
    arguments = parser.parse_args()
    if arguments.during and (arguments.store != "faiss" or arguments.first):
        parser.error("--during is for --store faiss, without --first")
    start, survived, run = time.monotonic(), 0, uuid.uuid4().hex[:12]
    with tempfile.TemporaryDirectory() as folder:

        def options(number: int) -> dict[str, str]:
            if arguments.store == "pgvector":
                return {"conninfo": arguments.conninfo, "table": f"kills-{run}-{number}"}
            return {"path": str(Path(folder) / str(number))}

        if arguments.during:
            outcomes = kill_changes(
                Path(folder), arguments.during, times=arguments.times, seed=arguments.seed
            )
            seen = Counter[str]()
            for number, left in enumerate(outcomes, start=1):
                seen[left] += 1
                print(f"kill {number}: {left}", flush=True)
            survived = seen[BEFORE] + seen[AFTER]
            print(
                f"{survived}/{arguments.times} whole in {time.monotonic() - start:.0f} s, {seen[AFTER]} of "
                "them with the change"
            )
            return int(survived < arguments.times)
        if arguments.first:
            left = kill_first_upserts(
                arguments.store,
                options,
                times=arguments.times,
                seed=arguments.seed,
            )
            for number, count in enumerate(left, start=1):
                survived += count in (0, GREAT)
                print(f"kill {number}: {count} of {GREAT} records", flush=True)
            print(f"{survived}/{arguments.times} in {time.monotonic() - start:.0f} s")
            return int(survived < arguments.times)
        kills = kill_writers(arguments.store, options(0), times=arguments.times, seed=arguments.seed)
        for number, kill in enumerate(kills, start=1):
            survived += not kill.lost
            print(f"kill {number}: {kill.flushed} batches flushed, {len(kill.lost)} faults", flush=True)
            for fault in kill.lost[:5]:
                print(f"  {fault}")
    print(f"{survived}/{arguments.times} in {time.monotonic() - start:.0f} s")
    return int(survived < arguments.times)


if __name__ == "__main__":
    sys.exit(main())
