"""A folder of image files, one sub-folder per class or none."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from cmray.core.errors import DataError
from cmray.datasets.base import datasets
from cmray.datasets.source import Bad, ImageSource, Item, SourceConfig, require_text

SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
SPLITS = ("train", "test", "validation", "valid", "val")


@dataclass(frozen=True)
class FolderSource(ImageSource):
    """Files in the order of their paths. A million of them are one string of bytes and two arrays.

    Args:
        root: the folder that the paths are relative to.
        paths: all of them as the file system spells them, each ended by a zero byte.
        ends: int64 [N], where in `paths` each one's zero byte is.
        labels: int64 [N], or None.
    """

    root: str
    paths: bytes = field(repr=False)
    ends: np.ndarray = field(repr=False, compare=False)
    labels: np.ndarray | None = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, index: int) -> str:
        start = int(self.ends[index - 1]) + 1 if index else 0
        return os.path.join(self.root, os.fsdecode(self.paths[start : int(self.ends[index])]))

    def read(self, start: int, stop: int) -> Iterator[Item | Bad]:
        for i in range(start, stop):
            path = self.path(i)
            try:
                with open(path, "rb") as file:
                    data = file.read()
            except OSError as error:
                yield Bad(path, f"cannot be read: {error.strerror}")
            else:
                yield Item(path, data, None if self.labels is None else int(self.labels[i]))

    def fingerprint(self) -> str:
        h = hashlib.sha256(repr((self.name, self.split, self.classes)).encode())
        h.update(self.paths)
        for i in range(len(self)):
            try:
                stat = os.stat(self.path(i))
                h.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
            except OSError:
                h.update(b"gone\n")
        return h.hexdigest()


@datasets.register("folder")
class FolderConfig(SourceConfig):
    """Any folder of image files, sub-folders included, in the order of their paths; hidden files do not count."""

    split: str | None = Field(None, description="sub-folder to take, where the source has train, val, test")
    labels: Literal["auto", "folders", "none"] = Field(
        "auto",
        description="folders: the first sub-folder of an image is its class; none: no classes; "
        "auto: folders where all images are in two or more of them",
    )

    def open(self) -> ImageSource:
        source = self.existing_source()
        if not source.is_dir():
            raise DataError(f"source {source} is a file; {self.name} reads a folder of images")
        root = self._root(source)
        found = sorted(_images(str(root), "", ()))
        if not found:
            raise DataError(f"{root} holds no images ({', '.join(SUFFIXES)})")
        tops = [path.partition("/")[0] if "/" in path else None for path in found]
        names = tuple(sorted({top for top in tops if top is not None}))
        loose = tops.index(None) if None in tops else None
        if self.labels == "folders" and loose is not None:
            raise DataError(f"{root / found[loose]} is in no class folder; labels folders needs every image in one")
        labelled = self.labels == "folders" or (self.labels == "auto" and loose is None and len(names) > 1)
        if labelled:
            require_text(root, names)
        encoded = [os.fsencode(path) for path in found]
        order = {name: i for i, name in enumerate(names)}
        return FolderSource(
            source.resolve().name or self.name,
            self.split or "all",
            str(root),
            names if labelled else (),
            os.path.abspath(root),
            b"".join(path + b"\0" for path in encoded),
            np.cumsum([len(path) + 1 for path in encoded], dtype=np.int64) - 1,
            np.array([order[top] for top in tops if top is not None], np.int64) if labelled else None,
        )

    def _root(self, source: Path) -> Path:
        """The folder of the chosen split. Raises DataError for a split that is not there, or not chosen."""
        folders = sorted(entry.name for entry in _entries(str(source)) if _is_dir(entry))
        if self.split is not None:
            if self.split not in folders:
                there = _few(folders) or "no sub-folders"
                raise DataError(f"{source} has no sub-folder of the split '{self.split}'; it has {there}")
            return source / self.split
        if folders and all(name.lower() in SPLITS for name in folders):
            raise DataError(f"{source} holds the splits {', '.join(folders)}; choose one with --split")
        return source


def _images(root: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Relative paths of the images under root/below, linked folders included. `above`: where the walk already is."""
    folder = os.path.join(root, below)
    for entry in _entries(folder):
        path = f"{below}{entry.name}"
        if _is_dir(entry):
            stat = os.stat(entry.path)
            here = (stat.st_dev, stat.st_ino)
            if here not in above:
                yield from _images(root, f"{path}/", (*above, here))
        elif os.path.splitext(entry.name)[1][1:].lower() in SUFFIXES and _is_file_or_broken_link(entry):
            yield path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder.rstrip('/')} cannot be read: {error.strerror}") from None


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file_or_broken_link(entry: os.DirEntry[str]) -> bool:
    """A broken link is an image that cannot be read, and is told of; a pipe would wait for ever."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
