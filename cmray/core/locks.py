"""One writer per experiment folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cmray.core.errors import StorageError
from cmray.core.files import write_atomic
from cmray.core.lease import Lease

LOCK = ".lock"
#: what file systems without locks answer
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextmanager
def locked(folders: Sequence[Path], hint: str = "wait for it, or give another --storage") -> Iterator[None]:
    """Holds every folder for this process. The kernel lets go when the process ends, however it ends.

    On a file system without locks, such as some network file systems, it is a lease: see `cmray.core.lease`.

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
            if error.errno in NO_LOCKS:
                with Lease(_Files(folder), "").held():
                    yield
                return
            if not isinstance(error, BlockingIOError):
                raise StorageError(f"{folder} cannot be locked: {error.strerror}") from None
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise StorageError(f"{folder} is in use by {holder}; {hint}") from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def waited_for(path: Path) -> Iterator[bool]:
    """Lets one process after the other in. Where there are no locks nobody waits, and it gives False: for work that at
    worst is done twice."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            alone = False
        yield alone


class _Files:
    """Leases as files of a folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def url_of(self, name: str) -> str:
        return str(self._folder)

    def names(self, folder: str) -> list[str]:
        try:
            files = sorted(os.listdir(self._folder / folder.lstrip("/")))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self._folder} cannot be read: {error.strerror}") from None
        return [f"{folder}/{file}" for file in files if not file.startswith(".")]

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name.lstrip("/")).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ESTALE:  # replaced while it was read
                return None
            raise StorageError(f"{self._folder} cannot be read: {error.strerror}") from None

    def write(self, name: str, data: bytes) -> None:
        try:
            write_atomic(self._folder / name.lstrip("/"), data.decode())
        except OSError as error:
            raise StorageError(f"storage folder {self._folder} cannot be written: {error.strerror}") from None

    def delete(self, name: str) -> None:
        (self._folder / name.lstrip("/")).unlink(missing_ok=True)


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
