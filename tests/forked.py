"""Children that a test forks, and that are killed where they hang."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

FORKS = int(os.environ.get("CLIPRETRIEVAL_TEST_FORKS", "2"))
"""How often a test forks that looks for a hang; twenty for a thorough run."""
GETS = int(os.environ.get("CLIPRETRIEVAL_TEST_GETS", "30"))
"""How many requests each of several processes sends; three hundred for a thorough run."""
DEADLINE_S = 60


def fork(work: Callable[[], None]) -> int:
    """Begin a child that does some work and ends, and return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a thread that waits for a lock would heed no other
        signal.alarm(DEADLINE_S)
        work()
        status = 0
    except BaseException:  # noqa: BLE001  the test's own process must not go on in here
        traceback.print_exc()
    finally:
        os._exit(status)


def ended_well(child: int) -> bool:
    """Wait for a child, and tell whether it did its work."""
    status = os.waitpid(child, 0)[1]
    assert not os.WIFSIGNALED(status), "the child hung" if os.WTERMSIG(status) == signal.SIGALRM else status
    return os.WEXITSTATUS(status) == 0
