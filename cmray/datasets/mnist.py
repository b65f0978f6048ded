"""MNIST and Fashion-MNIST: the four classic IDX files, downloaded or the user's, or Parquet as Hugging Face has it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cmray.core.errors import DataError
from cmray.datasets.arrays import FileArrays, require_labels, require_shape
from cmray.datasets.base import Usual, datasets
from cmray.datasets.download import Published, fetched
from cmray.datasets.parquet import parquet_files, parquet_source
from cmray.datasets.source import ImageSource, SourceConfig

#: how the files of a split begin
PREFIXES = {"train": "train", "test": "t10k"}
SHAPE = (1, 28, 28)


@datasets.register("mnist")
class Mnist(SourceConfig):
    """Handwritten digits, 28x28 grayscale: 60,000 train and 10,000 test (LeCun, Cortes, Burges)."""

    split: Literal["train", "test"] = Field("train", description="60,000 or 10,000 images")

    usual: ClassVar[Usual | None] = Usual(SHAPE, 10, 60_000)
    downloads: ClassVar[bool] = True
    usual_rule: ClassVar[dict[str, Any]] = {"channels": 1}
    classes: ClassVar[tuple[str, ...]] = tuple(str(i) for i in range(10))
    megabytes: ClassVar[int] = 11

    def open(self) -> ImageSource:
        if self.source is None:
            source = fetched(self.name, self._published(), self.megabytes)
        else:
            source = self.existing_source()
            if source.is_file() and source.name.removesuffix(".gz").endswith("-ubyte"):
                source = source.parent
        images = _idx_file(source, f"{PREFIXES[self.split]}-images-idx3-ubyte")
        if images is not None:
            found = self._from_idx(source, images)
        elif source.is_file() or any(source.rglob("*.parquet")):
            files, _ = parquet_files(source, self.split if source.is_dir() else None)
            found = parquet_source(self.name, self.split, str(source), files, self.classes)
        else:
            raise DataError(
                f"{source} holds neither {PREFIXES[self.split]}-images-idx3-ubyte[.gz] nor Parquet files, "
                f"so there is no split '{self.split}' of {self.name} in it"
            )
        require_shape(found, SHAPE)
        return found

    def _published(self) -> list[Published]:
        return _published("MNIST")

    def _from_idx(self, source: Path, image_file: Path) -> ImageSource:
        label_file = _idx_file(source, f"{PREFIXES[self.split]}-labels-idx1-ubyte")
        if label_file is None:
            raise DataError(f"{source} has {image_file.name}, but no {PREFIXES[self.split]}-labels-idx1-ubyte[.gz]")
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels):
            raise DataError(f"{image_file} holds {len(images)} images, but {label_file.name} {len(labels)} labels")
        require_labels(label_file, labels, len(self.classes))
        files = (image_file, label_file)
        return FileArrays(
            self.name, self.split, str(source), self.classes, images[:, None], labels.astype(np.int64), files
        )


@datasets.register("fashion-mnist")
class FashionMnist(Mnist):
    """Articles of clothing in the form of MNIST: 60,000 train and 10,000 test (Xiao, Rasul, Vollgraf 2017)."""

    classes: ClassVar[tuple[str, ...]] = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    megabytes: ClassVar[int] = 30

    def _published(self) -> list[Published]:
        return _published("FashionMNIST")


def _published(name: str) -> list[Published]:
    import torchvision.datasets  # keeps the addresses and sums up to date; slow to import

    table = getattr(torchvision.datasets, name)
    return [Published(file, md5, tuple(mirror + file for mirror in table.mirrors)) for file, md5 in table.resources]


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
