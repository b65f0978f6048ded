"""One writer per experiment folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cmray.core.errors import StorageError

LOCK = ".lock"


@contextmanager
def locked(folders: Sequence[Path], hint: str = "wait for it, or give another --storage") -> Iterator[None]:
    """Holds every folder for this process. The kernel lets go when the process ends, however it ends.

    Args:
        hint: what the user can do when another process holds one.

    Raises:
        StorageError: another process holds one, or a folder cannot be written.
    """
    with ExitStack() as stack:
        for folder in sorted(set(folders)):
            stack.enter_context(_one(folder, hint))
        yield


@contextmanager
def _one(folder: Path, hint: str) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise StorageError(f"storage folder {folder} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # such as a network file system without locks
                raise StorageError(f"{folder} cannot be locked: {error.strerror}") from None
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise StorageError(f"{folder} is in use by {holder}; {hint}") from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def check_writable(storage: Path) -> None:
    """Raises StorageError unless files can be made and renamed in the storage folder. Leaves nothing but the folder."""
    probe = storage / f".probe-{os.getpid()}"
    made = [p for p in (storage, *storage.parents) if not p.exists()]
    try:
        storage.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.rename(probe.with_suffix(".renamed")).unlink()
    except OSError as error:
        for folder in made:
            if folder.is_dir():
                folder.rmdir()
        raise StorageError(f"storage folder {storage} cannot be written: {error.strerror}") from None
