"""Run the conformance suite for every store and kind of index, and print which contract each one keeps.

    python benchmarks/conformance.py
    python benchmarks/conformance.py -k "Lance or Flat"

What is given besides goes to pytest. Prints tests passed, skipped and failed, and why they were skipped, in
Markdown; exits with pytest's status.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from _findings import markdown_table

ROOT = Path(__file__).parents[1]
SUITES = ("test_conformance.py", "faiss_store/test_faiss_conformance.py")


class Matrix:
    """A plugin of pytest's that counts outcomes by a test's class and by the contract it comes from."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, str]] = {}
        self.outcomes: dict[tuple[str, str], Counter[str]] = {}
        self._reasons: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            named = [each for each in item.cls.__mro__ if item.originalname in vars(each)]
            contract = named[-1].__name__.removesuffix("Contract") if named else "own tests"
            kind = item.cls.__name__.removeprefix("Test")
            store = f"FaissStore, {kind}" if "faiss_store" in item.nodeid else kind
            self._places[item.nodeid] = (store, contract)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test when it was called, or when what it needs could not be set up or freed."""
        if report.when != "call" and report.passed:
            return
        self.outcomes.setdefault(self._places[report.nodeid], Counter())[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            store = self._places[report.nodeid][0]
            reason = (
                report.longrepr[2]
                .removeprefix("Skipped: ")
                .rpartition("Test" + store.split(", ")[-1] + ".")[2]
            )
            self._reasons[f"{store}: {reason}"] += 1

    def __str__(self) -> str:
        stores, contracts = (list(dict.fromkeys(each)) for each in zip(*self.outcomes, strict=True))
        lines = [
            [store, *(_cell(self.outcomes.get((store, contract), Counter())) for contract in contracts)]
            for store in stores
        ]
        reasons = [f"- {reason} ({times})" for reason, times in sorted(self._reasons.items())]
        return "\n".join([markdown_table(["", *contracts], lines), "", *reasons])


def _cell(outcomes: Counter[str]) -> str:
    said = [f"{outcomes[each]} {each}" for each in ("failed", "skipped") if outcomes[each]]
    return ", ".join([str(outcomes["passed"]), *said])


def main() -> int:
    """Run the suites; return pytest's exit status."""
    suites = [str(ROOT / "tests" / "stores" / suite) for suite in SUITES]
    matrix = Matrix()
    status = pytest.main(["-q", "--rootdir", str(ROOT), *suites, *sys.argv[1:]], plugins=[matrix])
    if matrix.outcomes:  # none where pytest was asked for its help
        print(f"\n{matrix}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
