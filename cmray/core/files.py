"""Whole files or none."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path


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
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


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
