"""Encoders that kill their process, or wait, at a certain image."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from own_encoder import Quarters

__all__ = ["Dying", "Waiting"]


class Dying(Quarters):
    """Kills its process where `call` batches were encoded; once, where `marker` names a file."""

    def __init__(self, marker: str, call: int) -> None:
        super().__init__()
        self.marker, self.left = marker, call

    def encode(self, images: Any) -> Any:
        self.left -= 1
        if self.left < 0 and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(images)


class Waiting(Quarters):
    """Writes its process's number into a folder, and waits."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def encode(self, images: Any) -> Any:
        (Path(self.folder) / str(os.getpid())).touch()
        time.sleep(600)
        return super().encode(images)
