"""Writers beside each other in one database, and beside a server that is killed.

``python database_writers.py STORE OPTIONS WRITER ROUNDS`` writes its own records and shared ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval.errors import StoreError
from clipretrieval.stores import create_store

if TYPE_CHECKING:
    from postgres_server import PostgresServer

ROWS, DIM = 20, 8


def check_two_writers(store: str, options: dict[str, Any], rounds: int) -> None:
    """Let two processes fill a store at once, and look for what is lost, doubled or mixed."""
    command = [sys.executable, __file__, store, json.dumps(options)]
    writers = [
        subprocess.Popen([*command, str(number), str(rounds)], stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    for process in writers:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    with create_store(store, **options) as opened:  # type: ignore[attr-defined]
        names = [name for writer in range(2) for each in range(rounds) for name in own(writer, each)]
        found = opened.get(names)
        assert found.ids.tolist() == names
        assert found.labels.tolist() == [int(name.split("-")[0]) for name in names]
        assert opened.count() == len(names) + ROWS
        listed = [name for listing in opened.scan() for name in listing.ids.tolist()]
        assert len(set(listed)) == len(listed) == len(names) + ROWS
        shared = opened.get([f"shared-{row}" for row in range(ROWS)])
        assert shared.vectors[:, 0].tolist() == shared.labels.tolist(), "a record is of two writers"
        manifest = opened.read_manifest()
        assert manifest in ({"writer": 0}, {"writer": 1})


def own(writer: int, number: int) -> list[str]:
    return [f"{writer}-{number}-{row}" for row in range(ROWS)]


def write(store: str, options: str, writer: str, rounds: str) -> None:
    number = int(writer)
    with create_store(store, **json.loads(options)) as opened:  # type: ignore[attr-defined]
        for each in range(int(rounds)):
            rows = np.full((ROWS, DIM), number, dtype=np.float32)
            # The same ids in another order, all new at first.
            shared = [f"shared-{row}" for row in range(ROWS)][:: 1 - 2 * number]
            opened.upsert(shared, rows, [number] * ROWS)
            opened.upsert(own(number, each), rows, [number] * ROWS)
            opened.write_manifest({"writer": number})
            opened.flush()


def kill_servers(server: PostgresServer, times: int) -> int:
    """Kill a server amid writes and start it again, so many times; return the calls that had returned."""
    stop, told = threading.Event(), [0]
    store = create_store("pgvector", conninfo=server.conninfo, timeout=5)

    def fill() -> None:
        number = 0
        while not stop.is_set():
            try:
                store.upsert(own(0, number), np.full((ROWS, DIM), number, dtype=np.float32), [number] * ROWS)
                number += 1
                told[0] = number
            except StoreError:
                time.sleep(0.02)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        for _ in range(times):
            before, deadline = told[0], time.monotonic() + 60
            while told[0] < before + 3 + before % 5:
                assert time.monotonic() < deadline, "nothing is written"
                time.sleep(0.003)
            server.kill()
            returned = told[0]
            server.start()
            with create_store("pgvector", conninfo=server.conninfo) as opened:  # type: ignore[attr-defined]
                for number in range(returned):
                    found = opened.get(own(0, number))
                    assert found.labels.tolist() == [number] * ROWS, f"batch {number} of {returned} is lost"
                    assert (found.vectors == number).all()
                assert opened.count() % ROWS == 0, "half a call was stored"
    finally:
        stop.set()
        thread.join()
        store.close()
    return told[0]


if __name__ == "__main__":
    write(*sys.argv[1:])
