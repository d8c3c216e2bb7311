"""Build the C kernels beside the package, where there is a compiler; without it all is pure Python."""

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

SOURCE = Path("clipretrieval", "encoding", "engine", "winograd.c")
LIBRARY = Path("clipretrieval", "encoding", "engine", "_winograd.so")
FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-pthread")


class KernelHook(BuildHookInterface):
    """Compile the kernels into the wheel, which is then one for this kind of machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, for x86-64 on Linux; a failure leaves a wheel for any machine."""
        if self.target_name != "wheel":
            return
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
            return
        # An editable installation imports from the checkout; a wheel leaves the checkout alone.
        editable = version == "editable"
        try:
            if editable:
                Path(self.root, "build").mkdir(exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(dir=Path(self.root, "build") if editable else None)
            made = _compile(Path(self.root, SOURCE), Path(self._folder.name, LIBRARY.name))
            if editable:
                made.replace(Path(self.root, LIBRARY))
        except (OSError, ValueError) as error:
            self.app.display_warning(
                f"The C kernels were not built, so the encoder will use oneDNN's: {error}. For the faster "
                "ones, install a C compiler that knows AVX512-BF16 (gcc 11, clang 12, or later), and install "
                "again."
            )
            return
        if not editable:
            build_data["force_include"][str(made)] = LIBRARY.as_posix()
        build_data["pure_python"] = False
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled, once it is in the wheel."""
        folder = getattr(self, "_folder", None)
        if folder is not None:
            folder.cleanup()


def _compile(source: Path, made: Path) -> Path:
    """Compile into a file, synced to the disk.

    Raises
    ------
    OSError
        If there is no compiler, or nowhere to write.
    ValueError
        If the compiler fails, or ``CC`` cannot be read.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    command = [*compiler, *FLAGS, "-o", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"{compiler[0]} failed"]
        raise ValueError(next((line for line in told if "error" in line), told[-1]))
    with made.open("rb") as file:
        os.fsync(file.fileno())
    return made
