"""Ctrl-C at whatever moment: one line and status 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm_process import WarmProcess

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the signals of POSIX")
PATIENCE_S = 120


def start(*arguments: object, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *options, "-m", "clipretrieval", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "module",
    [
        "typer",
        "clipretrieval.cli.arguments",
        "numpy",
        "sklearn.base",
        "torch._C",
        "open_clip",
    ],
)
def test_an_interrupt_while_libraries_are_imported_is_one_line(class_folder: Path, module: str) -> None:
    """As soon as an import is done, wherever in the start that is, Ctrl-C leaves no traceback."""
    folders = ("--train", class_folder / "train", "--test", class_folder / "test")
    random = ("--model", "RN50", "--pretrained", "none", "--stage", "stem")  # takes all that there is
    process = start("evaluate", *folders, *random, options=("-X", "importtime"))
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    told = [line for line in err.splitlines() if not line.startswith("import time:")]
    # What was still in the pipe may begin in the middle of a line.
    assert (process.returncode, out, told[-1:]) == (130, "", ["interrupted"])
    assert "Traceback" not in err
    assert "Exception" not in err


def test_a_process_without_interrupts_keeps_to_that(class_folder: Path) -> None:
    """A job that was started without Ctrl-C, as one in the background, is not ended by it."""
    quiet = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import signal, sys, threading; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            "threading.Timer(0, signal.raise_signal, [signal.SIGINT]).start()\n"
            "sys.argv = ['clipretrieval', '--version']; from clipretrieval.cli import main; main()",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = quiet.communicate(timeout=PATIENCE_S)
    assert (quiet.returncode, err) == (0, "")
    assert out.startswith("clipretrieval ")


def test_an_interrupt_of_a_store_in_memory_does_not_say_that_something_is_kept(
    class_folder: Path, tmp_path: Path
) -> None:
    """What lies in the process alone is lost with it, and the folder can be used again."""
    many = tmp_path / "many"
    for name in ("flower", "temple"):
        (many / name).mkdir(parents=True)
        for number in range(2000):
            (many / name / f"{number}.jpg").symlink_to(class_folder / "train" / name / "00.jpg")
    kept = tmp_path / "kept"
    options = ("--store", "memory", "--pretrained", "none", "--batch-size", 4)
    process = WarmProcess(["-m", "clipretrieval", "index", many, kept, *options])
    assert process.pid
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not (kept / "indexing.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert (process.poll(), out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert "kept; pass --resume" not in err
    assert not kept.exists()
