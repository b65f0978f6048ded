"""A folder of a dataset: on a disk that this machine sees, or in an object store, through pyarrow's filesystems."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from cmray.core.errors import DataError
from cmray.core.files import write_atomic

CHUNK = 8 * 2**20


class Location:
    """A folder that is named by a path or by a URL (s3://bucket/folder, gs://bucket/folder, file:///folder).

    Credentials and endpoints come from the environment, as everywhere (AWS_PROFILE, AWS_ENDPOINT_URL,
    GOOGLE_APPLICATION_CREDENTIALS, ...). Objects and renamed files appear whole or not at all.

    Raises:
        DataError: a scheme that pyarrow does not know, or a key in the URL. Methods raise OSError as pyarrow does,
            unless they say more.
    """

    def __init__(self, where: str | Path | Location):
        self.name = where.name if isinstance(where, Location) else str(where).rstrip("/") or "/"
        self._is_url = "://" in self.name
        if self._is_url and re.match(r"[^:/]*://[^/@]*:[^/@]*@", self.name):
            scheme, _, rest = self.name.partition("://")
            raise DataError(
                f"{scheme}://...@{rest.rpartition('@')[2]} holds a key, which would be kept with every result; leave "
                f"it out and set it in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )

    @property
    def folder(self) -> Path | None:
        """The folder as a path, None in an object store."""
        if not self._is_url:
            return Path(self.name)
        return Path(self._opened[1]) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        if not self._is_url:
            return fs.LocalFileSystem(), os.path.abspath(self.name)
        try:
            return fs.FileSystem.from_uri(self.name)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{self.name} cannot be opened: {_first_line(error)}") from None

    @property
    def filesystem(self) -> fs.FileSystem:
        return self._opened[0]

    def path(self, name: str = "") -> str:
        """What the filesystem calls a file of this folder."""
        base = self._opened[1]
        return f"{base}/{name}" if name else base

    def exists(self) -> bool:
        return self.filesystem.get_file_info(self.path()).type != fs.FileType.NotFound

    def is_folder(self) -> bool:
        return self.filesystem.get_file_info(self.path()).type == fs.FileType.Directory

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""
        info = self.filesystem.get_file_info(self.path(name))
        return info.size if info.type == fs.FileType.File else None

    def stamp(self, name: str) -> tuple[int, int]:
        """Bytes and time of the last change (ns) of a file, (-1, -1) where there is none."""
        info = self.filesystem.get_file_info(self.path(name))
        return (info.size, info.mtime_ns or 0) if info.type == fs.FileType.File else (-1, -1)

    def names(self) -> list[str]:
        """Files and folders in it, sorted; [] where it does not exist."""
        selector = fs.FileSelector(self.path(), allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def open(self, name: str) -> pa.NativeFile:
        """A file to be read at random places."""
        return self.filesystem.open_input_file(self.path(name))

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole file or none."""
        folder = self.folder
        if folder is None:
            with self.filesystem.open_output_stream(self.path(name)) as file:
                file.write(data)
            return
        write_atomic(folder / name, data)

    def put(self, file: Path, name: str) -> None:
        """Moves a local file here, whole or not at all."""
        folder = self.folder
        if folder is not None:
            os.replace(file, folder / name)
            return
        with file.open("rb") as source, self.filesystem.open_output_stream(self.path(name)) as sink:
            while chunk := source.read(CHUNK):
                sink.write(chunk)
        file.unlink()

    def delete(self, name: str) -> None:
        if self.size(name) is not None:
            self.filesystem.delete_file(self.path(name))

    def make(self) -> None:
        self.filesystem.create_dir(self.path(), recursive=True)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Location({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_is_url": self._is_url}  # filesystems are opened anew where they arrive


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def why(error: BaseException) -> str:
    """The reason of an operating system's or an object store's error in one line."""
    return getattr(error, "strerror", None) or _first_line(error)
