"""What one node of a cluster sees: runs there, in an actor that takes none of its CPUs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass

from cmray.core.errors import CmrayError
from cmray.core.plugins import GROUP
from cmray.datasets.location import Location

#: packages that must be the same on every node, because objects of theirs travel or numbers depend on them
SAME = ("ray", "cmray", "torch", "numpy", "pyarrow")


@dataclass(frozen=True)
class Asked:
    """What to look at: the storage folder, a file that the driver wrote there, an MLflow server, a dataset."""

    storage: str
    file: str
    tracking_uri: str | None
    data: str | None


@dataclass(frozen=True)
class Seen:
    """One node's answers; an empty text says that all is well."""

    host: str
    versions: dict[str, str]
    nccl: str
    gpus: tuple[str, ...]  # names, from NVIDIA's driver
    auth_mode: str
    shm: float  # GiB free in /dev/shm
    disk: float  # GiB free in the folder for temporary files
    storage: str
    tracking: str
    data: str


class Probe:
    """Answers on its node."""

    def clock(self) -> float:
        """Seconds since 1970, by this node."""
        return time.time()

    @staticmethod
    def versions() -> dict[str, str]:
        """Of Python, of the packages that must be the same everywhere, and of installed plug-ins."""
        own = {"python": platform.python_version(), **{name: _version(name) for name in SAME}}
        points = importlib.metadata.entry_points(group=GROUP)
        return own | {point.dist.name: point.dist.version for point in points if point.dist is not None}

    def look(self, asked: Asked, number: int) -> Seen:
        """All the rest. `number` tells nodes apart: several may run on one machine."""
        return Seen(
            host=socket.gethostname(),
            versions=self.versions(),
            nccl=_nccl(),
            gpus=_gpus(),
            auth_mode=os.environ.get("RAY_AUTH_MODE", "unset"),
            shm=_free("/dev/shm"),
            disk=_free(os.environ.get("TMPDIR", "/tmp")),
            storage=_storage(asked, number),
            tracking=_answers(asked.tracking_uri),
            data=_data(asked.data),
        )


def answer_name(file: str, number: int) -> str:
    """The file that node `number` writes beside `file`."""
    return f"{file}-{number}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _nccl() -> str:
    names = [d.metadata["Name"] or "" for d in importlib.metadata.distributions()]
    return next((_version(name) for name in sorted(names) if name.lower().startswith("nvidia-nccl")), "")


def _gpus() -> tuple[str, ...]:
    """By NVIDIA's tool, as Ray hides GPUs from processes that asked for none."""
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in lines if line.strip())


def _free(folder: str) -> float:
    try:
        return shutil.disk_usage(folder).free / 2**30
    except OSError:
        return 0.0


def _storage(asked: Asked, number: int) -> str:
    place = Location(asked.storage)
    try:
        if place.size(asked.file) is None:
            return f"does not see what the driver has written to {place}"
        place.write(
            answer_name(asked.file, number), place.read(asked.file)
        )  # whole, by renaming, where there are files
    except (OSError, CmrayError) as error:
        return f"cannot read and write {place}: {_first_line(error)}"
    return ""


def _answers(uri: str | None) -> str:
    if uri is None or not uri.startswith("http"):
        return ""
    import urllib.request

    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
    except (OSError, ValueError) as error:
        return f"gets no answer: {_first_line(error)}"
    return ""


def _data(folder: str | None) -> str:
    if folder is None:
        return ""
    from cmray.datasets.manifest import read_manifest, verify_shards

    try:
        verify_shards(Location(folder), read_manifest(folder), rehash=False)
    except (OSError, CmrayError) as error:
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
