"""Asking a trial to save and leave, through a file in its folder: it works wherever the trial runs."""

from __future__ import annotations

import time
from pathlib import Path

from cmray.core.files import write_atomic

STOP = "stop"
#: seconds between two looks: a look at a shared file system may take as long as a step
EVERY = 0.5


def ask_to_stop(folder: Path, why: str) -> None:
    """Asks the trial in `folder` to save a checkpoint and leave. `why` is for people who find the file."""
    write_atomic(folder / STOP, f"{why}\n")


def clear_stop(folder: Path) -> None:
    """Takes the request back; a trial that has left may start again."""
    (folder / STOP).unlink(missing_ok=True)


class StopFile:
    """What the trial sees of the request."""

    def __init__(self, folder: Path):
        self._path = folder / STOP
        self._looked = -EVERY
        self._found = False

    def asked(self) -> bool:
        """Whether the trial is to save and leave; True for good once it was."""
        now = time.monotonic()
        if not self._found and now - self._looked >= EVERY:
            self._looked, self._found = now, self._path.exists()
        return self._found
