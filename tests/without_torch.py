"""Processes in which torch and what comes with it are not installed, as far as they can tell."""

from __future__ import annotations

import subprocess
import sys

ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_without_torch(program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program; a warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", ABSENT + program],
        capture_output=True,
        text=True,
        check=False,
    )
