"""CIFAR-10 in each form it is passed around in: Python batches, binary batches, a tarball, image folders, Parquet."""

from __future__ import annotations

import dataclasses
import tarfile
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cmray.core.errors import DataError
from cmray.datasets.arrays import FileArrays, printable, require_labels, require_shape
from cmray.datasets.base import Usual, datasets
from cmray.datasets.batch_pickle import read_batch_pickle
from cmray.datasets.download import Published, fetched
from cmray.datasets.folder import FolderConfig
from cmray.datasets.parquet import parquet_files, parquet_source
from cmray.datasets.source import ImageSource, SourceConfig

#: in label order, which is also the order of the alphabet
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
VALUES = 3 * 32 * 32
MEGABYTES = 170
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
#: the folder inside the tarball, and how its batches end
FORMS = (("cifar-10-batches-py", ""), ("cifar-10-batches-bin", ".bin"))
TARBALLS = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")


@datasets.register("cifar10")
class Cifar10(SourceConfig):
    """Small photos of ten classes, 32x32 RGB: 50,000 train and 10,000 test (Krizhevsky 2009)."""

    split: Literal["train", "test"] = Field("train", description="50,000 or 10,000 images")

    usual: ClassVar[Usual | None] = Usual(SHAPE, len(CLASSES), 50_000)
    downloads: ClassVar[bool] = True
    usual_rule: ClassVar[dict[str, Any]] = {"channels": 3}

    def open(self) -> ImageSource:
        source = fetched(self.name, _published(), MEGABYTES) if self.source is None else self.existing_source()
        for form in (self._from_batches, self._from_parquet, self._from_folder):
            found = form(source)
            if found is not None:
                require_shape(found, SHAPE)
                return found
        raise DataError(
            f"{source} holds no CIFAR-10: it can be {' or '.join(f for f, _ in FORMS)}, the folder around it, "
            f"{' or '.join(TARBALLS)}, Parquet files, or one folder of images for each of {', '.join(CLASSES)}"
        )

    def _from_batches(self, source: Path) -> ImageSource | None:
        if source.is_file() and source.name in _file_names():
            source = source.parent
        if source.is_file():
            return None if source.suffix == ".parquet" else self._from_tarball(source)
        for folder in (source, *(source / inner for inner, _ in FORMS)):
            for _, ending in FORMS:
                if any((folder / f"{name}{ending}").is_file() for names in BATCHES.values() for name in names):
                    files = [folder / f"{name}{ending}" for name in BATCHES[self.split]]
                    there = tuple(path for path in files if path.is_file())
                    return self._joined(folder, {path.name: _content(path) for path in there}, there, ending)
        tarball = next((source / name for name in TARBALLS if (source / name).is_file()), None)
        return None if tarball is None else self._from_tarball(tarball)

    def _from_tarball(self, path: Path) -> ImageSource:
        contents = _tar_contents(path, self.split)
        return self._joined(path, contents, (path,), ".bin" if any(n.endswith(".bin") for n in contents) else "")

    def _joined(self, origin: Path, contents: dict[str, bytes], files: tuple[Path, ...], ending: str) -> ImageSource:
        """All batches of the split, one after the other. Raises DataError."""
        names = [f"{name}{ending}" for name in BATCHES[self.split]]
        missing = [name for name in names if name not in contents]
        if missing:
            raise DataError(f"{origin} has no {', '.join(missing)}, which the split '{self.split}' of cifar10 needs")
        pixels, labels = [], []
        for name in names:
            where = f"{origin}: {name}" if origin.is_file() else str(origin / name)
            batch = _from_binary if ending else _from_pickle
            x, y = batch(where, contents.pop(name))
            require_labels(where, y, len(CLASSES))
            pixels.append(x)
            labels.append(y)
        images = np.concatenate(pixels).reshape(-1, *SHAPE)
        return FileArrays("cifar10", self.split, str(origin), CLASSES, images, np.concatenate(labels), files)

    def _from_parquet(self, source: Path) -> ImageSource | None:
        if source.is_dir() and not any(source.rglob("*.parquet")):
            return None
        files, _ = parquet_files(source, self.split if source.is_dir() else None)
        return parquet_source("cifar10", self.split, str(source), files, CLASSES)

    def _from_folder(self, source: Path) -> ImageSource | None:
        splits = [name for name in BATCHES if (source / name).is_dir()]
        if splits and self.split not in splits:
            raise DataError(f"{source} has the folder {', '.join(splits)}, but no folder {self.split}")
        folder = source / self.split if splits else source
        if not any(p.is_dir() for p in folder.iterdir()):
            return None
        found = FolderConfig.model_validate({"source": folder, "labels": "folders"}).open()
        if found.classes != CLASSES:
            raise DataError(
                f"{folder} has folders of the classes {', '.join(found.classes) or 'none'}; "
                f"those of cifar10 are {', '.join(CLASSES)}"
            )
        return dataclasses.replace(found, name="cifar10", split=self.split)


def _published() -> list[Published]:
    from torchvision.datasets import CIFAR10  # keeps the address and the sum up to date; slow to import

    return [Published(CIFAR10.filename, CIFAR10.tgz_md5, (CIFAR10.url,))]


def _file_names() -> set[str]:
    return {f"{name}{ending}" for names in BATCHES.values() for name in names for _, ending in FORMS}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _tar_contents(path: Path, split: str) -> dict[str, bytes]:
    """The batches of a split in a tarball by file name, in whatever folder they are. Nothing is unpacked to disk."""
    wanted = {f"{name}{ending}" for name in BATCHES[split] for _, ending in FORMS}
    contents = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                file = tar.extractfile(member) if name in wanted and member.isreg() else None
                if file is not None:
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} cannot be read as a tarball: {printable(reason)}") from None
    return contents


def _from_pickle(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 3072] and int64 [n] of a Python batch. Raises DataError."""
    batch = read_batch_pickle(where, content)
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != VALUES:
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{where}: data is {found}; a batch of CIFAR-10 has uint8 [n, {VALUES}]")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{where}: labels are {type(labels).__name__}; a batch of CIFAR-10 has a list of integers")
    if len(labels) != len(data) or not len(data):
        raise DataError(f"{where} holds {len(data)} images, but {len(labels)} labels")
    return data, np.array([min(max(label, -1), len(CLASSES)) for label in labels], np.int64)


def _from_binary(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The same of a binary batch: rows of a label and 3,072 values. Raises DataError."""
    if not content or len(content) % (1 + VALUES):
        raise DataError(f"{where} holds {len(content):,} bytes; a binary batch has {1 + VALUES:,} for each image")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + VALUES)
    return rows[:, 1:], rows[:, 0].astype(np.int64)
