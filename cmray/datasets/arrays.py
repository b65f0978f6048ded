"""Help for sources of a known shape: arrays that came from files, and checks that name the file and the image."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmray.core.errors import DataError
from cmray.datasets.images import BadImage, ImageRule, to_pixels
from cmray.datasets.source import ArraySource, Bad, ImageSource, fingerprint_files

#: what reading an .npz file raises when the file is not a sound one; RuntimeError for forms of zip that Python lacks
ARCHIVE_ERRORS = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class FileArrays(ArraySource):
    """Images in memory that were read from `files`: another date or size of a file is another source."""

    files: tuple[Path, ...]

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {fingerprint_files(list(self.files))}"


def require_labels(where: object, labels: np.ndarray, classes: int) -> None:
    """Raises DataError for the first label outside [0, classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{where}: label {labels[wrong[0]]} of image {wrong[0]} is out of range; labels are 0 to {classes - 1}"
        )


def require_shape(source: ImageSource, shape: tuple[int, int, int]) -> None:
    """Raises DataError when the first image that can be read is not [C, H, W] of `shape`; the rest is seen later."""
    for first in source.read(0, min(1, len(source))):
        if isinstance(first, Bad):
            continue
        try:
            found = to_pixels(first, ImageRule.model_validate({})).shape
        except BadImage:
            continue
        if found != shape:
            usual, this = ("x".join(map(str, s)) for s in (shape, found))
            raise DataError(
                f"{first.where}: images of {source.name} are {usual}, this one is {this}; "
                f"`parquet` and `folder` take any size"
            )


def printable(text: str) -> str:
    """Text out of a file in one line, without codes that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)
