"""Build the C kernel beside the package, where there is a compiler; without it the package is pure Python."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("clipretrieval", "encoding", "winograd.c")
LIBRARY = Path("clipretrieval", "encoding", "_winograd.so")
FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-pthread")


class KernelHook(BuildHookInterface):
    """Compile the kernel into the wheel, which is then one for this kind of machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, for x86-64 on Linux; a failure leaves a wheel for any machine."""
        if self.target_name != "wheel":
            return
        library = Path(self.root, LIBRARY)
        library.unlink(missing_ok=True)
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
            return
        failure = _compile(Path(self.root, SOURCE), library)
        if failure:
            self.app.display_warning(f"The C kernel was not built, so oneDNN's serve: {failure}")
            return
        build_data["pure_python"] = False
        build_data["artifacts"].append(LIBRARY.as_posix())
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"


def _compile(source: Path, library: Path) -> str:
    """Compile into a file that appears whole; return what went wrong, if anything."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder, library.name)
        command = [*compiler, *FLAGS, "-o", str(made), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        except OSError as error:
            return f"{compiler[0]}: {error.strerror}"
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"{compiler[0]} failed"])[0]
        made.replace(library)
    return ""
