"""ImageNet at 64 px: the downsampled NumPy batches (Chrabaszcz et al. 2017), or ImageNet's own folders of photos."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cmray.core.errors import DataError
from cmray.datasets.arrays import ARCHIVE_ERRORS, printable
from cmray.datasets.base import Usual, datasets
from cmray.datasets.folder import FolderConfig
from cmray.datasets.source import Bad, ImageSource, Item, SourceConfig, fingerprint_files

NUM_CLASSES = 1000
#: the batches hold numbers 1 to 1000 and no names, and the numbers are not those of the sorted wnids
CLASSES = tuple(map(str, range(NUM_CLASSES)))
BATCHES = {"train": tuple(f"train_data_batch_{i}.npz" for i in range(1, 11)), "val": ("val_data.npz",)}
#: pixels of a side that the batches are published in
SIZES = (64, 32, 16)


@datasets.register("imagenet64")
class ImageNet64(SourceConfig):
    """ImageNet's 1,000 classes: 1,281,167 train and 50,000 val images. The 32 and 16 px batches are read too."""

    split: Literal["train", "val"] = Field("train", description="1,281,167 or 50,000 images")

    usual: ClassVar[Usual | None] = Usual((3, 64, 64), NUM_CLASSES, 1_281_167)
    usual_rule: ClassVar[dict[str, Any]] = {"crop": "adm", "size": 64, "channels": 3}

    def rule_for(self, source: ImageSource) -> dict[str, Any]:
        # the 32 and 16 px batches keep their size
        return {**self.usual_rule, "size": source.size} if isinstance(source, NpzBatches) else self.usual_rule

    def open(self) -> ImageSource:
        source = self.existing_source()
        if source.is_file() and source.name in itertools.chain(*BATCHES.values()):
            source = source.parent
        if source.is_dir():
            if any((source / name).is_file() for name in itertools.chain(*BATCHES.values())):
                return npz_batches(source, self.split)
            splits = [name for name in BATCHES if (source / name).is_dir()]
            if splits and self.split not in splits:
                raise DataError(f"{source} has the folder {', '.join(splits)}, but no folder {self.split}")
            folder = source / self.split if splits else source
            if any(p.is_dir() for p in folder.iterdir()):
                photos = FolderConfig.model_validate({"source": folder, "labels": "folders"}).open()
                return dataclasses.replace(photos, name=self.name, split=self.split)
        raise DataError(
            f"{source} holds no ImageNet: it can be a folder with {', '.join(BATCHES['train'][:2])}, ... and "
            f"{BATCHES['val'][0]}, or with {' and '.join(BATCHES)}, each with one folder of photos for each class"
        )


@dataclass(frozen=True)
class NpzBatches(ImageSource):
    """Batches with `data` uint8 [n, 3*size*size], channels first, and `labels` [n] from 1 on.

    Args:
        ends: how many images there are up to the end of each file.
    """

    size: int
    files: tuple[Path, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, start: int, stop: int) -> Iterator[Item | Bad]:
        while start < stop:
            i = bisect.bisect_right(self.ends, start)
            first, path = (self.ends[i - 1] if i else 0), self.files[i]
            data, labels = _batch(path)
            if data.shape != (self.ends[i] - first, 3 * self.size**2) or labels.shape != data.shape[:1]:
                raise DataError(f"{path} changed since it was opened: its data is {list(data.shape)} now")
            for row in range(start - first, min(stop, self.ends[i]) - first):
                where, label = f"{path}: image {row}", int(labels[row])
                if not 1 <= label <= NUM_CLASSES:
                    yield Bad(where, f"label {label} is out of range 1 to {NUM_CLASSES}")
                else:  # a copy, so that nobody keeps the whole batch alive
                    yield Item(where, data[row].reshape(3, self.size, self.size).copy(), label - 1)
            start = min(stop, self.ends[i])

    def fingerprint(self) -> str:
        return f"{self.name} {self.split} {fingerprint_files(list(self.files))}"


def npz_batches(source: Path, split: str) -> NpzBatches:
    """The batches of a split; only the headers of their arrays are read. Raises DataError."""
    files = tuple(source / name for name in BATCHES[split])
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise DataError(f"{source} has no {', '.join(missing)}, which the split '{split}' of imagenet64 needs")
    counts, sizes = [], []
    for path in files:
        (dtype, data), (kind, labels) = _header(path, "data"), _header(path, "labels")
        size = math.isqrt(data[1] // 3) if len(data) == 2 else 0
        if dtype != np.uint8 or size not in SIZES or data[1:] != (3 * size * size,) or not data[0]:
            raise DataError(
                f"{path}: data is {dtype} {list(data)}; a batch has uint8 "
                f"{' or '.join(f'[n, {3 * s * s}] ({s} px)' for s in SIZES)}"
            )
        if labels != data[:1] or not np.issubdtype(kind, np.integer):
            raise DataError(f"{path}: labels are {kind} {list(labels)}; there are {data[0]} images")
        if sizes and size != sizes[0]:
            raise DataError(f"{path} holds images of {size} px, but {files[0].name} of {sizes[0]} px")
        counts.append(data[0])
        sizes.append(size)
    name = f"imagenet{sizes[0]}"
    return NpzBatches(name, split, str(source), CLASSES, sizes[0], files, tuple(itertools.accumulate(counts)))


def _header(path: Path, key: str) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of one array of an archive, whose values are not unpacked. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            return dtype, shape
    except KeyError:
        raise DataError(f"{path} has no array '{key}'; a batch has data and labels") from None
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{path} cannot be read as an .npz archive: {_reason(error)}") from None


#: the batch that was read last in this process: up to 1.6 GB, and unpacking it takes seconds
_latest: dict[tuple[Path, int, int], tuple[np.ndarray, np.ndarray]] = {}


def _batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`data` and `labels` of a file. Raises DataError."""
    try:
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        found = _latest.get(key)
        if found is None:
            _latest.clear()  # before the next one is read: two at once may not fit
            with np.load(path, allow_pickle=False) as archive:
                found = _latest[key] = archive["data"], archive["labels"]
        return found
    except KeyError as error:
        raise DataError(f"{path} has no array {error}; a batch has data and labels") from None
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)
