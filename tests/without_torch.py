"""Processes in which torch and what comes with it are not installed, as far as they can tell."""

from __future__ import annotations

import subprocess
import sys

ABSENT = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = ("torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript")
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


def run_without_torch(program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program; a warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", ABSENT + program],
        capture_output=True,
        text=True,
        check=False,
    )
