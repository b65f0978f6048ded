"""Whole files or none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cmray.core.errors import ConfigError, StorageError


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A free name beside `path`. The file or folder that the block makes there becomes `path` when the block ends, in
    one rename, over a file or an empty folder of that name; when the block raises, it is removed.

    Missing folders above are made. Readers, and those who come after a process that was killed, see what was there
    before or all of the new.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield tmp
        os.replace(tmp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(tmp, ignore_errors=True) if tmp.is_dir() else tmp.unlink(missing_ok=True)
        raise


def check_place(path: Path, option: str, folder: bool = False) -> None:
    """Raises ConfigError unless `beside` can make a file, or a new folder, there; said before the work, not after it.

    Args:
        option: what a person calls it, such as --out.
    """
    parent = path.absolute().parent
    if not folder and path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; write a file's name")
    if folder and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        raise ConfigError(f"{option} {path} exists and is not an empty folder")
    if folder and path.is_symlink():
        raise ConfigError(f"{option} {path} is a link; name a folder")
    if not parent.is_dir():
        raise ConfigError(f"{option} {path}: folder {parent} does not exist")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {path}: folder {parent} cannot be written: {error.strerror}") from None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, never half of it, even after a power cut."""
    try:
        with beside(path) as tmp, tmp.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            synced(file)
    except OSError as error:
        if error.filename is None:  # writing does not say which file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def synced(file: IO[Any]) -> None:
    """What was written to a file is on the disk when this returns."""
    file.flush()
    os.fsync(file.fileno())


def disk_full(folder: Path, error: OSError) -> StorageError | None:
    """What to tell a person of an error in writing below `folder`, when it says that no room is left; else None."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    try:
        free = f", {shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free"
    except OSError:
        free = ""
    return StorageError(
        f"the disk of {folder} is full ({error.strerror}{free}): its checkpoints are kept; make room, and the same "
        f"command goes on from the last one"
    )


def no_room(folder: Path) -> StorageError | None:
    """`disk_full`, if not even a little file can be written into `folder`."""
    probe = folder / ".room"
    try:
        probe.write_bytes(bytes(1 << 12))
    except OSError as error:
        return disk_full(folder, error)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


#: file systems on which another machine's new file may stay unseen for a while, and for how many seconds at most
NETWORK, UNSEEN = ("nfs", "cifs", "smb", "fuse", "lustre", "gpfs", "ceph", "glusterfs", "9p", "beegfs"), 65.0


def unseen_for(folder: Path, mounts: str | None = None) -> float:
    """Seconds for which a file that another machine wrote to `folder` may not show up here; 0 on a disk.

    Args:
        mounts: what /proc/mounts says.
    """
    try:
        lines = (Path("/proc/mounts").read_text() if mounts is None else mounts).splitlines()
    except OSError:  # not Linux
        return 0.0
    kinds = {}
    for line in lines:
        _, point, kind = line.split()[:3]
        kinds[Path(point.replace("\\040", " "))] = kind
    own = next((kinds[place] for place in (folder, *folder.parents) if place in kinds), "")
    return UNSEEN if own.startswith(NETWORK) else 0.0


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
