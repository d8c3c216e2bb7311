"""What a type checker sees of the package: it accepts right uses and refuses wrong ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SNIPPETS = sorted((ROOT / "tests" / "typing").glob("*.py"))


def expected_errors() -> set[tuple[str, int, str]]:
    """Collect the files, lines and codes that the snippets mark with ``# E: code``."""
    return {
        (path.name, number, code)
        for path in SNIPPETS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for code in re.findall(r"# E: ([a-z-]+)$", line)
    }


def test_mypy_accepts_and_refuses_what_the_snippets_say(tmp_path: Path) -> None:
    """Of the lines in tests/typing, mypy refuses those that are marked, for that reason, and no other."""
    # From the project's root, so that a checkout's package is found before an installed one.
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "tests" / "typing" / "mypy.ini")]
    command += ["--cache-dir", str(tmp_path), *map(str, SNIPPETS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.findall(r"([^/\\\s]+\.py):(\d+): error: .*\[([a-z-]+)\]$", done.stdout, flags=re.MULTILINE)
    assert {(name, int(line), code) for name, line, code in found} == expected_errors(), (
        done.stdout + done.stderr
    )
    assert len(expected_errors()) > 10
