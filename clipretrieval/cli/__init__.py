"""The ``clipretrieval`` command: what takes Ctrl-C over, and then all that takes longer to import.

Answers go to the standard output, everything else to the standard error. The exit status is 0, 3 where
images were skipped, 2 for a mistake of the user's (one line, no traceback), 130 after Ctrl-C.
"""

from __future__ import annotations

import gc
import os
import sys

from clipretrieval._util.lazy import attach
from clipretrieval.cli import interrupt

TYPE_CHECKING = False  # as type checkers know it; typing would hold up what takes Ctrl-C over
if TYPE_CHECKING:
    from typing import NoReturn

    from clipretrieval.cli.application import app

__all__ = ["app", "main"]


def main() -> NoReturn:
    """Run the command line and exit; Ctrl-C and the standard streams are the command's from now on."""
    interrupt.install()
    from clipretrieval.cli.application import let_go, run

    status = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        let_go(stream)
    if status == interrupt.INTERRUPTED:
        # The usual way out takes seconds once torch is loaded, and it ends by the signal, not with a status,
        # if the interrupt came while a library was running generated code.
        os._exit(status)
    gc.freeze()  # what the libraries hold is not looked through for garbage once more
    raise SystemExit(status)


__getattr__, __dir__ = attach(__name__, {"application": ["app"]})
