"""Where images come from before they are shards: anything that can say how many it holds and read a range of them."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import Field

from cmray.core.errors import DataError
from cmray.datasets.base import DatasetConfig


@dataclass(frozen=True)
class Item:
    """One image as its source has it.

    Args:
        where: for messages, such as "FILE: row 3".
        data: the bytes of an image file, or pixels, uint8 [C, H, W].
        label: in [0, number of classes), None where the source has no labels.
    """

    where: str
    data: bytes | np.ndarray
    label: int | None = None


@dataclass(frozen=True)
class Bad:
    """An image that cannot be used, and why, in a few words that follow `where`."""

    where: str
    reason: str


@dataclass(frozen=True)
class ImageSource(ABC):
    """Images in a fixed order. Small enough to be pickled: workers read ranges of it in other processes.

    Args:
        name, split, origin: where they come from, for people.
        classes: class names in label order, empty without labels.
    """

    name: str
    split: str
    origin: str
    classes: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are, bad ones included."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Item | Bad]:
        """Exactly stop - start items in order. Raises DataError where a whole file is gone or damaged."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the source does (names, sizes, dates; not content), so that nobody resumes with another."""


@dataclass(frozen=True)
class ArraySource(ImageSource):
    """Images that fit into memory.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], or None.
    """

    images: np.ndarray = field(repr=False)
    labels: np.ndarray | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Iterator[Item | Bad]:
        for i in range(start, stop):
            label = None if self.labels is None else int(self.labels[i])
            if label is not None and not 0 <= label < len(self.classes):
                yield Bad(f"{self.origin}: image {i}", f"label {label} is out of range 0 to {len(self.classes) - 1}")
            else:
                yield Item(f"{self.origin}: image {i}", self.images[i], label)

    def fingerprint(self) -> str:  # without `origin`, a path as somebody typed it
        return f"{self.name} {self.split} {self.images.shape} {self.classes}"


class SourceConfig(DatasetConfig):
    """A dataset made from files that the user has."""

    source: Path | None = Field(None, description="file or folder to read")

    def existing_source(self) -> Path:
        """The source. Raises DataError when none is given or it is not there."""
        if self.source is None:
            raise DataError(
                f"{self.name} cannot prepare itself, its files are yours: "
                f"`cmray data prepare {self.name} --source PATH --out DIR` makes a folder for data.path"
            )
        if not self.source.exists():
            raise DataError(f"source {self.source} does not exist")
        return self.source


def fingerprint_files(paths: list[Path]) -> str:
    """Full names, sizes and modification times of files, in one hash."""
    h = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        h.update(os.fsencode(os.path.abspath(path)))
        h.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return h.hexdigest()


def require_text(where: object, classes: Sequence[str]) -> None:
    """Raises DataError for the first class name that is no Unicode text; a manifest could not hold it."""
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{where}: class name {name!a} is not UTF-8; rename it") from None
