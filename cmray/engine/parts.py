"""What chunks of a measurement gave, kept in files until the number is there, so that a restart works them no more.

A file holds a chunk, never a single block of seeds: statistics of 2,048-d features take 32 MiB. At that size 50,000
samples (25 chunks of 8 x 256) take 0.8 GiB while they are measured, 0.4 GiB more where a measure wants the features
themselves and 0.8 GiB more for spatial features; with features of 64 dimensions it is 7 MiB. The files are removed
when the record is written. Where a pool works on more at once than there are chunks, they are cut into pieces, whose
files hold the blocks one by one (see `engine.pieces`).

Several processes may measure the same samples. What they want is part of a folder's name, <of what>-<wanted>, so no
file is replaced by one with less in it; and a folder that another process uses is never removed (see `InUse`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from cmray.config.identity import content_hash
from cmray.core.errors import StorageError
from cmray.core.files import beside, synced

Arrays = dict[str, np.ndarray]
LOCK = ".in-use"


def folder_for(above: Path, what: str, names: Collection[str]) -> Path:
    """Where the chunks of `what` (without a "-") are kept that hold these arrays."""
    return above / f"{what}-{content_hash(sorted(names))[:16]}"


def kept(file: str | None, names: Collection[str], make: Callable[[], Arrays]) -> Arrays:
    """Makes arrays and keeps them in `file`, if it does not hold all `names` yet; returns {} then.

    What a folder of the same samples holds, of a command that wanted more, is taken over. Without a file it returns
    what `make` gives.
    """
    if file is None:
        return make()
    path = Path(file)
    if not holds(path, names):
        write_arrays(path, _from_others(path, names) or make())
    return {}


def _from_others(path: Path, names: Collection[str]) -> Arrays:
    for folder in _alike(path.parent):
        if holds(folder / path.name, names):
            with contextlib.suppress(StorageError, KeyError):  # removed or replaced meanwhile
                found = read_arrays(folder / path.name)
                return {name: found[name] for name in names}
    return {}


def _alike(folder: Path) -> list[Path]:
    """The other folders for chunks of the same."""
    what, dash, _ = folder.name.rpartition("-")
    return sorted(p for p in folder.parent.glob(f"{what}-*") if p != folder) if dash else []


def holds(path: Path, names: Collection[str]) -> bool:
    """Whether a whole file with these arrays is there."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in names} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz so that a reader sees a whole file or none. Raises StorageError."""
    try:
        with beside(path) as tmp, tmp.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            synced(file)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from None


def read_arrays(path: Path) -> Arrays:
    """Raises StorageError when it is gone or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{path} cannot be read: {reason}; remove it and run the command again") from None


def forget(folder: Path) -> None:
    """Removes a folder of parts, and the one above if nothing else is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty, or gone
        folder.parent.rmdir()


class InUse:
    """Folders of parts that this process works with, in a with block; others leave them alone until it ends.

    Each is marked by a shared advisory lock, which the system takes back from a process that is killed. Nobody waits
    for the work of another: the last one to leave a folder removes it. Where a file system has no locks, there is
    no such protection.
    """

    def __init__(self, folders: Iterable[Path]):
        self._locks: dict[Path, int | None] = dict.fromkeys(folders)

    def __enter__(self) -> InUse:
        for folder in self._locks:
            self._locks[folder] = _shared(folder)
        return self

    def __exit__(self, *_: object) -> None:
        for folder in list(self._locks):
            self._leave(folder)
            if not any(folder.glob("*.npz")):
                _forget_unused(folder)

    def forget(self, folder: Path) -> None:
        """Removes a folder and others of the same, as far as nobody else uses them."""
        self._leave(folder)
        for one in (folder, *_alike(folder)):
            if one not in self._locks:
                _forget_unused(one)

    def _leave(self, folder: Path) -> None:
        lock = self._locks.pop(folder, None)
        if lock is not None:
            os.close(lock)


def _shared(folder: Path) -> int | None:
    """An open file with a shared lock. None where there are no locks. Raises StorageError."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # somebody is removing it
            continue
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {error.strerror or error}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits while somebody removes the folder, for nothing else
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                return lock
        except FileNotFoundError:
            pass
        except OSError:
            os.close(lock)
            return None
        os.close(lock)


def _forget_unused(folder: Path) -> None:
    if not folder.is_dir():
        return
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # gone, or not ours
        return
    try:
        with contextlib.suppress(BlockingIOError):
            _lock_alone(lock)
            forget(folder)
    finally:
        os.close(lock)


def _lock_alone(lock: int) -> None:
    """Raises BlockingIOError when somebody else has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # no locks here
