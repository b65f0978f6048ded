"""What chunks of a measurement gave, kept in files until the number is there, so that a restart works them no more.

A file holds a chunk, never a single block of seeds: statistics of 2,048-d features take 32 MiB. At that size 50,000
samples (25 chunks of 8 x 256) take 0.8 GiB while they are measured, 0.4 GiB more where a measure wants the features
themselves and 0.8 GiB more for spatial features; with features of 64 dimensions it is 7 MiB. The files are removed
when the record is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from cmray.core.errors import StorageError

Arrays = dict[str, np.ndarray]


def kept(file: str | None, names: Collection[str], make: Callable[[], Arrays]) -> Arrays:
    """Makes arrays and keeps them in `file`, if it does not hold all `names` yet; returns {} then.

    Without a file it returns what `make` gives.
    """
    if file is None:
        return make()
    if not holds(Path(file), names):
        write_arrays(Path(file), make())
    return {}


def holds(path: Path, names: Collection[str]) -> bool:
    """Whether a whole file with these arrays is there."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in names} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz so that a reader sees a whole file or none. Raises StorageError."""
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tmp.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            tmp.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(f"{path} cannot be written: {error.strerror or error}") from None
        raise


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
