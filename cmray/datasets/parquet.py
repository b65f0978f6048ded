"""Images in Parquet as Hugging Face lays them out: `image: struct<bytes, path>`, and `label` if there are classes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import Field

from cmray.core.errors import DataError
from cmray.datasets.base import DatasetConfig, ImageDataset, datasets

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label")
#: where no class names are given, a label at or above this is a damaged one
MAX_CLASSES = 100_000
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}(-\w+)?")
_SPLITS = ("train", "test", "validation", "valid", "val")


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


@datasets.register("parquet")
class ParquetConfig(SourceConfig):
    """Any dataset of images of one size in the Hugging Face layout: a file, or a folder of shards in name order."""

    split: str | None = Field(None, description="which shards of a folder that holds several splits")

    def load(self) -> ImageDataset:
        source = self.existing_source()
        files, split = parquet_files(source, self.split)
        return read_parquet(source.stem if source.is_file() else source.resolve().name, split, str(source), files)


def parquet_files(source: Path, split: str | None) -> tuple[list[Path], str]:
    """The files of one split in name order, and what the split is called. Raises DataError."""
    found = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if not found:
        raise DataError(f"{source} holds no Parquet files")
    splits = {path: _split_of(path) for path in found}
    named = sorted(set(filter(None, splits.values())))
    if split is None:
        if len(named) > 1:
            raise DataError(f"{source} holds the splits {', '.join(named)}; choose one with --split")
        return found, named[0] if named else "all"
    chosen = [path for path in found if splits[path] == split]
    if not chosen:
        raise DataError(
            f"{source} has no Parquet files of the split '{split}'; it has {', '.join(named) or 'no splits'}"
        )
    return chosen, split


def _split_of(path: Path) -> str | None:
    """train for train-00000-of-00005.parquet, train/0000.parquet and train.parquet; None for other names."""
    shard = _SHARD.fullmatch(path.stem)
    name = shard["split"] if shard else path.parent.name if path.stem.isdigit() else path.stem
    return name if shard or name in _SPLITS else None


@dataclass(frozen=True)
class _Row:
    where: str  # "FILE: row 3", for messages
    image: Any
    label: Any


def read_parquet(
    name: str, split: str, source: str, files: Sequence[Path], classes: tuple[str, ...] | None = None
) -> ImageDataset:
    """All images of the files in order, grayscale as one channel, RGB as three.

    Grayscale images among RGB ones become RGB. Without `classes` their names are those that Hugging Face wrote into
    the schema, else the label numbers.

    Raises:
        DataError: a file that cannot be read or has other columns; with file and row, an image that is none or of
            another size, or a label that is missing or out of range.
    """
    opened = [_open(path) for path in files]
    count = sum(file.metadata.num_rows for file in opened)
    if not count:
        raise DataError(f"{source} holds no images")
    columns = [_columns(path, file.schema_arrow) for path, file in zip(files, opened, strict=True)]
    labelled = columns[0][1] is not None
    if any((label is not None) != labelled for _, label in columns):
        raise DataError(f"{source}: some files have labels and some have none")
    known = classes or (_class_names(opened[0].schema_arrow, columns[0][1]) if columns[0][1] else ())
    images: np.ndarray = np.empty((0, 0, 0, 0), np.uint8)
    labels = np.empty(count, np.int64)
    for i, row in enumerate(_rows(files, opened, columns)):
        pixels = _pixels(row)
        if not i:
            images = np.empty((count, *pixels.shape), np.uint8)
        if pixels.shape[1:] != images.shape[2:]:
            raise DataError(
                f"{row.where}: the image is {_size(pixels.shape)}, but the first one is {_size(images.shape[1:])}; "
                f"all must be of one size"
            )
        if len(pixels) > images.shape[1]:
            images = np.repeat(images, 3, axis=1)
        images[i] = pixels
        if labelled:
            labels[i] = _label(row, len(known))
    if labelled and not known:
        known = tuple(map(str, range(int(labels.max()) + 1)))
    return ImageDataset(name, split, source, images, labels if labelled else None, known if labelled else ())


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _columns(path: Path, schema: pa.Schema) -> tuple[str, str | None]:
    """Names of the image and the label column. Raises DataError."""
    image = next((c for c in IMAGE_COLUMNS if c in schema.names), None)
    if image is None:
        raise DataError(f"{path} has no column {' or '.join(IMAGE_COLUMNS)}; it has {', '.join(schema.names)}")
    kind = schema.field(image).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataError(f"{path}: column {image} is {kind}; the Hugging Face layout is struct<bytes, path>")
    label = next((c for c in LABEL_COLUMNS if c in schema.names), None)
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"{path}: column {label} is {schema.field(label).type}; labels are integers")
    return image, label


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """What Hugging Face calls the classes, () where it does not say."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in told["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _rows(
    files: Sequence[Path], opened: Sequence[pq.ParquetFile], columns: Sequence[tuple[str, str | None]]
) -> Iterator[_Row]:
    for path, file, (image, label) in zip(files, opened, columns, strict=True):
        number = 0
        try:
            for batch in file.iter_batches(batch_size=1024, columns=[f"{image}.bytes", *([label] if label else [])]):
                data = batch.column(image).to_pylist()
                said = batch.column(label).to_pylist() if label else [None] * len(data)
                for entry, value in zip(data, said, strict=True):
                    yield _Row(f"{path}: row {number}", (entry or {}).get("bytes"), value)
                    number += 1
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read near row {number}: {str(error).splitlines()[0]}") from None


def _pixels(row: _Row) -> np.ndarray:
    """uint8 [1,H,W] or [3,H,W]. Raises DataError."""
    if not row.image:
        raise DataError(f"{row.where}: the image has no bytes")
    try:
        with Image.open(io.BytesIO(row.image)) as image:
            mode, see_through = image.mode, image.has_transparency_data
            pixels = np.asarray(image.convert("L" if mode in ("1", "L") else "RGB"))
    except Exception as error:  # a damaged picture can raise anything
        reason = "not an image" if isinstance(error, OSError) and "identify" in str(error) else str(error)
        raise DataError(f"{row.where}: the image cannot be decoded: {' '.join(reason.split())}") from None
    if see_through or mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
        raise DataError(f"{row.where}: the image is of mode {mode}; grayscale and RGB of 8 bits, opaque, can be read")
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _label(row: _Row, classes: int) -> int:
    limit = classes or MAX_CLASSES
    if row.label is None or not 0 <= row.label < limit:
        raise DataError(f"{row.where}: label {row.label} is out of range; labels are 0 to {limit - 1}")
    return row.label


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[2]}"
