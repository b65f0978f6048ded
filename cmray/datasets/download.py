"""Published files, fetched once into a cache folder: checked by MD5, bounded in time, whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from cmray.core.errors import DataError

#: no connection and no further byte for this long: the mirror is given up
SILENCE_S = 20.0
#: all files together, name look-ups and slow servers included
LIMIT_S = 1800.0
_CHUNK = 1 << 16
#: told (bytes so far, bytes in all, about) a few times a second while files are fetched; nobody by default
watcher: ContextVar[Callable[[int, int], None] | None] = ContextVar("download watcher", default=None)
_TOLD_S = 0.2


@dataclass(frozen=True)
class Published:
    """A file, its MD5 and the addresses it is at, tried in order."""

    file: str
    md5: str
    urls: tuple[str, ...]


def downloads_folder(name: str) -> Path:
    """Where the files of a dataset are kept: <XDG_CACHE_HOME or ~/.cache>/cmray/downloads/NAME."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "cmray" / "downloads" / name


def fetched(name: str, files: Sequence[Published], megabytes: int) -> Path:
    """The folder that holds all files, each of them checked; only what is missing or damaged is fetched.

    Args:
        name: of the dataset.
        megabytes: of all files, for the message; a file of more than twice that is given up.

    Raises:
        DataError: a file cannot be fetched within SILENCE_S of silence and LIMIT_S in all, or its MD5 is another one.
    """
    folder = downloads_folder(name)
    work = _Download(folder, tuple(files), megabytes << 21)
    work.start()
    try:
        _wait(work, megabytes * 10**6)
        reason = f"not done after {LIMIT_S:g} s" if work.is_alive() else work.failure
    finally:
        work.stop.set()
        work.join(1)  # where bytes still come, its partial file goes now
    if reason is not None:
        raise DataError(
            f"{name} could not be downloaded to {folder}: {reason}; get {', '.join(f.file for f in files)} "
            f"(about {megabytes} MB) onto this machine yourself and name their folder with `--source PATH`"
        )
    return folder


def _wait(work: _Download, about: int) -> None:
    """Until it has ended or LIMIT_S are over, telling the watcher."""
    told = watcher.get()
    ends = time.monotonic() + LIMIT_S
    while work.is_alive() and (left := ends - time.monotonic()) > 0:
        work.join(min(left, _TOLD_S))
        if told is not None and work.size:
            told(work.size, max(about, work.size))


class _Download(threading.Thread):
    """A daemon: looking up a name cannot be interrupted, and must not keep the process alive."""

    def __init__(self, folder: Path, files: tuple[Published, ...], max_bytes: int):
        super().__init__(daemon=True, name="download")
        self.folder, self.files, self.max_bytes = folder, files, max_bytes
        self.stop = threading.Event()
        self.failure: str | None = None
        self.size = 0  # bytes that came, of all files

    def run(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in self.files:
                if not _is_whole(self.folder / file.file, file.md5):
                    self._any_mirror(file)
        except Exception as error:  # reported by the thread that waits
            self.failure = _text(error)

    def _any_mirror(self, file: Published) -> None:
        failures = []
        for url in file.urls:
            try:
                return self._fetch(file, url)
            except (OSError, ValueError, http.client.HTTPException) as error:
                failures.append(f"{urllib.parse.urlsplit(url).hostname}: {_text(error)}")
        raise OSError(f"{file.file}: {'; then '.join(failures)}")

    def _fetch(self, file: Published, url: str) -> None:
        """Writes beside the place and renames after the check, so that no partial file has the file's name."""
        handle, partial = tempfile.mkstemp(prefix=f".{file.file}-", dir=self.folder)
        try:
            md5, size = hashlib.md5(usedforsecurity=False), 0
            with (
                os.fdopen(handle, "wb") as out,
                urllib.request.urlopen(url, timeout=SILENCE_S) as response,
            ):
                while chunk := response.read1(_CHUNK):  # read() would wait for a whole chunk, however slow
                    size += len(chunk)
                    self.size += len(chunk)
                    if self.stop.is_set() or size > self.max_bytes:
                        raise OSError(f"stopped at {size:,} bytes")
                    md5.update(chunk)
                    out.write(chunk)
            if md5.hexdigest() != file.md5:
                raise OSError(f"{size:,} bytes came, but their MD5 is not the published one")
            os.replace(partial, self.folder / file.file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)


def _is_whole(path: Path, md5: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5


def _text(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    strerror = reason.strerror if isinstance(reason, OSError) else None
    return " ".join(str(strerror or reason or type(error).__name__).split())
