"""Whole files or none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from pathlib import Path

from cmray.core.errors import StorageError


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file so that a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with tmp.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            tmp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # writing does not say which file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


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
