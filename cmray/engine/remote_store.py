"""A folder in an object store: whole files, checkpoints whose manifest comes last, and errors in one line."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from cmray.config.checkpoint_facts import META, CheckpointFacts, read_checkpoint_facts
from cmray.core.errors import CheckpointError, DataError, StorageError
from cmray.core.files import beside, sha256_of, synced
from cmray.datasets.location import CHUNK, Location, why

T = TypeVar("T")
#: files that are carried at once
AT_ONCE = 8
#: size in bytes and time of the last change of an object or a file; object stores tell whole seconds
Stamp = tuple[int, int]


#: what pyarrow's errors say, which have no code of their own, when asking again is of no use
_REFUSALS = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "HTTP status 403")


class RefusedError(StorageError):
    """A store that answers, and says no."""


def persist(do: Callable[[], T], patience: float, tell: Callable[[str], None] = lambda _: None) -> T:
    """`do`, again and again for `patience` seconds as long as the store does not answer.

    Args:
        tell: is told once that it waits.
    """
    end, pause = time.monotonic() + patience, 0.5
    while True:
        try:
            return do()
        except StorageError as error:
            if isinstance(error, RefusedError) or time.monotonic() + pause > end:
                raise
            if pause == 0.5:
                tell(f"{error}; trying again for {patience:g} s")
            time.sleep(pause)
            pause = min(2 * pause, 8.0)


@dataclass(frozen=True)
class Store:
    """A folder in an object store and its working copy. Names are relative to the folder, with slashes.

    Methods raise StorageError when the store does not answer, refuses, or lacks what is asked for.
    """

    url: str
    root: Path

    @cached_property
    def _location(self) -> Location:
        return Location(self.url)

    @property
    def _files(self) -> fs.FileSystem:
        return self._location.filesystem

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "root": self.root}  # filesystems are opened anew where they arrive

    def name_of(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def url_of(self, name: str) -> str:
        """The URL of a file or folder; options that the URL ends with stay at its end."""
        base, mark, options = self.url.partition("?")
        return f"{base}/{name}{mark}{options}"

    @contextmanager
    def _talking(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException, DataError) as error:
            text = " ".join(why(error).split())
            kind = RefusedError if any(code in text for code in _REFUSALS) else StorageError
            raise kind(f"{self.url} cannot be {doing}: {text}") from None

    def check(self) -> None:
        """Raises StorageError unless the bucket is there and answers."""
        with self._talking("reached"):
            bucket = self._location.path().partition("/")[0]
            if self._files.get_file_info(bucket).type == fs.FileType.NotFound:
                raise StorageError(f"{self.url} cannot be reached: there is no bucket {bucket}, or it is not yours")

    def check_writable(self) -> None:
        """Raises StorageError unless objects can be made and removed. Leaves nothing."""
        probe = f".probe-{uuid.uuid4().hex}"
        self.write(probe, b"probe")
        self.delete(probe)

    def listing(self, under: str = "") -> dict[str, Stamp]:
        """All files below a folder, however deep; {} where there is none."""
        base = self._location.path()
        selector = fs.FileSelector(f"{base}/{under}" if under else base, allow_not_found=True, recursive=True)
        with self._talking("listed"):
            found = self._files.get_file_info(selector)
        files = (info for info in found if info.type == fs.FileType.File)
        return {info.path[len(base) + 1 :]: (info.size, info.mtime_ns or 0) for info in files}

    def names(self, folder: str) -> list[str]:
        """Of all files below a folder."""
        return sorted(self.listing(folder))

    def stamp(self, name: str) -> Stamp | None:
        """None where there is no such file."""
        with self._talking("read"):
            info = self._files.get_file_info(self._location.path(name))
        return (info.size, info.mtime_ns or 0) if info.type == fs.FileType.File else None

    def read(self, name: str) -> bytes | None:
        """None where there is no such file."""
        if self.stamp(name) is None:
            return None
        try:
            with self._talking("read"):
                return self._location.read(name)
        except StorageError:
            if self.stamp(name) is None:  # removed meanwhile
                return None
            raise

    def write(self, name: str, data: bytes) -> None:
        """A whole object or none."""
        with self._talking("written"), self._files.open_output_stream(self._location.path(name)) as sink:
            sink.write(data)

    def put(self, path: Path, name: str) -> None:
        """Copies a local file there. An object appears whole, or not at all when this process is killed."""
        if path.stat().st_size <= CHUNK:
            self.write(name, path.read_bytes())
            return
        with (
            path.open("rb") as source,
            self._talking("written"),
            self._files.open_output_stream(self._location.path(name)) as sink,
        ):
            while chunk := source.read(CHUNK):
                sink.write(chunk)

    def get(self, name: str, path: Path, sha256: str | None = None) -> None:
        """Copies a file here, whole or not at all. Raises CheckpointError when it has another hash."""
        with beside(path) as tmp:
            with tmp.open("wb") as out:
                with self._talking("read"), self._location.open(name) as source:
                    while chunk := source.read(CHUNK):
                        out.write(chunk)
                synced(out)
            if sha256 is not None and sha256_of(tmp) != sha256:
                raise CheckpointError(f"{self.url_of(name)} is not what its manifest says: its SHA-256 is another")

    def delete(self, name: str) -> None:
        with self._talking("written"), suppress(FileNotFoundError):  # removed by somebody else, meanwhile
            self._location.delete(name)

    def get_folder(self, folder: Path, last: str) -> None:
        """Fetches the files missing here of a folder that is written once; `last` is the one that vouches for it."""
        under = self.name_of(folder)
        there = self.listing(under)
        if f"{under}/{last}" not in there:
            return
        names = [n.removeprefix(f"{under}/") for n in there]
        missing = [n for n in names if not hidden(n) and "/" not in n and not (folder / n).is_file()]
        self.many(lambda n: self.get(f"{under}/{n}", folder / n), [n for n in missing if n != last])
        if last in missing:
            self.get(f"{under}/{last}", folder / last)

    def put_folder(self, folder: Path, last: str) -> None:
        """Copies a folder's files there as far as sizes differ, and `last`, the one that vouches for it, at the end."""
        under = self.name_of(folder)
        there = self.listing(under)
        names = [p.name for p in sorted(folder.iterdir()) if p.is_file() and not hidden(p.name)]
        new = [n for n in names if there.get(f"{under}/{n}", (-1, 0))[0] != (folder / n).stat().st_size]
        self.many(lambda n: self.put(folder / n, f"{under}/{n}"), [n for n in new if n != last])
        if new and last in names:
            self.put(folder / last, f"{under}/{last}")

    def get_checkpoint(self, folder: Path) -> CheckpointFacts:
        """Fetches a checkpoint as far as it is not here: parts first, each held against the manifest, manifest last.

        Raises CheckpointError when the store has none of that name, or a part is not what the manifest says.
        """
        under = self.name_of(folder)
        if (folder / META).is_file():
            facts = read_checkpoint_facts(folder)
            if all((folder / part).is_file() for part in facts.files):
                return facts
        meta = self.read(f"{under}/{META}")
        if meta is None:
            raise CheckpointError(f"{self.url_of(under)} is not a whole checkpoint: it has no {META}")
        folder.mkdir(parents=True, exist_ok=True)
        told = folder / f".{META}.{uuid.uuid4().hex}"
        told.mkdir()
        try:
            (told / META).write_bytes(meta)
            facts = read_checkpoint_facts(told)
            missing = [part for part in facts.files if not (folder / part).is_file()]
            self.many(lambda part: self.get(f"{under}/{part}", folder / part, facts.files[part]), missing)
            os.replace(told / META, folder / META)
        finally:
            (told / META).unlink(missing_ok=True)
            told.rmdir()
        return facts

    def put_checkpoint(self, folder: Path, name: str) -> None:
        """Copies a whole local checkpoint there: parts first, the manifest last, so that a manifest means a whole one.

        Args:
            name: of the checkpoint's folder in the store.
        """
        facts = read_checkpoint_facts(folder)
        self.delete(f"{name}/{META}")  # of a damaged one of the same step
        self.many(lambda part: self.put(folder / part, f"{name}/{part}"), list(facts.files))
        self.put(folder / META, f"{name}/{META}")

    def delete_checkpoint(self, name: str) -> None:
        """Removes the manifest first, so that what is left never looks whole."""
        self.delete(f"{name}/{META}")
        self.delete_folder(name)

    def delete_folder(self, name: str) -> None:
        with self._talking("written"), suppress(FileNotFoundError):  # nothing of that name
            self._files.delete_dir(self._location.path(name))

    def many(self, do: Callable[[str], None], names: Sequence[str]) -> None:
        """Does the same with several files at once."""
        if len(names) < 2:
            for name in names:
                do(name)
            return
        with ThreadPoolExecutor(min(AT_ONCE, len(names)), thread_name_prefix="cmray-store") as threads:
            list(threads.map(do, names))


def hidden(name: str) -> bool:
    """Whether a name is nobody's business: half-written files, locks, notes of this machine."""
    return any(part.startswith(".") for part in name.split("/"))
