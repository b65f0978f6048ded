"""MNIST from files that the user has: the four classic IDX files, or Parquet in the layout of Hugging Face."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from cmray.core.errors import DataError
from cmray.datasets.base import ImageDataset, datasets
from cmray.datasets.parquet import SourceConfig, parquet_files, read_parquet

CLASSES = tuple(str(i) for i in range(10))
#: how the files of a split begin
PREFIXES = {"train": "train", "test": "t10k"}


@datasets.register("mnist")
class Mnist(SourceConfig):
    """Handwritten digits, 28x28 grayscale: 60,000 train and 10,000 test (LeCun, Cortes, Burges)."""

    split: Literal["train", "test"] = Field("train", description="60,000 or 10,000 images")

    def load(self) -> ImageDataset:
        source = self.existing_source()
        images = _idx_file(source, f"{PREFIXES[self.split]}-images-idx3-ubyte")
        if images is not None:
            dataset = self._from_idx(source, images)
        elif source.is_file() or any(source.rglob("*.parquet")):
            files, _ = parquet_files(source, self.split if source.is_dir() else None)
            dataset = read_parquet("mnist", self.split, str(source), files, CLASSES)
        else:
            raise DataError(
                f"{source} holds neither {PREFIXES[self.split]}-images-idx3-ubyte[.gz] nor Parquet files, "
                f"so there is no split '{self.split}' of mnist in it"
            )
        if dataset.shape != (1, 28, 28):
            found = "x".join(map(str, dataset.shape))
            raise DataError(f"{source}: images of mnist are 1x28x28, these are {found}; `parquet` takes any size")
        return dataset

    def _from_idx(self, source: Path, image_file: Path) -> ImageDataset:
        label_file = _idx_file(source, f"{PREFIXES[self.split]}-labels-idx1-ubyte")
        if label_file is None:
            raise DataError(f"{source} has {image_file.name}, but no {PREFIXES[self.split]}-labels-idx1-ubyte[.gz]")
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels):
            raise DataError(f"{image_file} holds {len(images)} images, but {label_file.name} {len(labels)} labels")
        bad = np.flatnonzero(labels >= len(CLASSES))
        if len(bad):
            raise DataError(
                f"{label_file}: label {labels[bad[0]]} of image {bad[0]} is out of range; labels are 0 to 9"
            )
        return ImageDataset("mnist", self.split, str(source), images[:, None], labels.astype(np.int64), CLASSES)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not: magic 0x0800 + dims, `dims` sizes (int32, big-endian), the values.

    Raises:
        DataError: it cannot be read or unpacked, has another magic number, or is shorter or longer than its sizes say.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    magic, start = int.from_bytes(content[:4], "big"), 4 + 4 * dims
    if len(content) < start or magic != 0x0800 + dims:
        raise DataError(f"{path} begins with {magic:#010x}; an IDX file of bytes in {dims}D has {0x0800 + dims:#010x}")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dims, 4))
    values = np.frombuffer(content, np.uint8, offset=start)
    if len(values) != np.prod(shape, dtype=object) or not len(values):
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{path} holds {len(values):,} bytes of values, but its sizes are {sizes}")
    return values.reshape(shape)


def _idx_file(source: Path, name: str) -> Path | None:
    return next((p for p in (source / name, source / f"{name}.gz") if p.is_file()), None)
