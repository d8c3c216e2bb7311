"""What a benchmark has measured, kept on disk after every row."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Findings", "markdown_table", "processor"]


class Findings:
    """Rows of figures under a heading that says how they came about.

    Each row is written to `path` (JSON), and what `render` makes of all rows beside it (Markdown), so that a
    run that is cut short has lost nothing. In a ``with`` block, which Ctrl-C or SIGTERM may cut short, the
    tables are printed at the end.
    """

    def __init__(
        self, path: Path | None, render: Callable[[list[dict[str, Any]]], str], **settings: Any
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path, self._render = path, render
        self._head = {
            "command": shlex.join(["python", *sys.argv]),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("numpy", "scipy", "scikit-learn", "faiss-cpu")},
            **settings,
        }

    def add(self, **row: Any) -> None:
        """Take a row, write all that there is, and then show the row."""
        self.rows.append(row)
        if self._path is not None:
            found = json.dumps({**self._head, "rows": self.rows}, indent=2, ensure_ascii=False)
            for path, content in ((self._path, found + "\n"), (self._path.with_suffix(".md"), str(self))):
                path.with_suffix(".part").write_text(content, encoding="utf-8")
                path.with_suffix(".part").replace(path)
        print(
            ", ".join(f"{name} {_short(value)}" for name, value in row.items()), file=sys.stderr, flush=True
        )

    def __enter__(self) -> Findings:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        cut_short = isinstance(error, KeyboardInterrupt)
        if error is None or cut_short:
            print(self, flush=True)
        if cut_short:
            sys.exit("cut short: this is what there is so far")

    def __str__(self) -> str:
        head = self._head
        named = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
        own = {
            name: value for name, value in head.items() if name not in ("versions", "command", "processor")
        }
        settings = ", ".join(f"{name} {value}" for name, value in own.items())
        lines = [f"`{head['command']}`", "", f"{head['processor']}; {settings}; {named}", ""]
        return "\n".join(lines) + self._render(self.rows) + "\n"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Write a table whose first column is text and whose others are figures."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def processor() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
