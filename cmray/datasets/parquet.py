"""Images in Parquet as Hugging Face lays them out: `image: struct<bytes, path>`, and `label` if there are classes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cmray.core.errors import DataError
from cmray.datasets.base import datasets
from cmray.datasets.source import Bad, ImageSource, Item, SourceConfig, fingerprint_files

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label")
#: where no class names are given, a label at or above this is a damaged one
MAX_CLASSES = 100_000
_BATCH_ROWS = 64
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}(-\w+)?")
_SPLITS = ("train", "test", "validation", "valid", "val")


class ParquetFileRows(NamedTuple):
    """One file of a source.

    Args:
        start: number of its first row among the rows of all files.
        groups: rows of each row group.
        image, label: column names; is_struct: whether images are struct<bytes, path> and not plain bytes.
    """

    path: str
    start: int
    groups: tuple[int, ...]
    image: str
    is_struct: bool
    label: str | None


@dataclass(frozen=True)
class ParquetSource(ImageSource):
    """Rows of Parquet files in order. Reading a range opens only the row groups that it touches."""

    files: tuple[ParquetFileRows, ...] = field(repr=False)

    def __len__(self) -> int:
        last = self.files[-1]
        return last.start + sum(last.groups)

    def read(self, start: int, stop: int) -> Iterator[Item | Bad]:
        for file in self.files:
            first, last = max(start - file.start, 0), min(stop - file.start, sum(file.groups))
            if first < last:
                for row, (data, label) in enumerate(_rows(file, first, last), first):
                    yield self._checked(f"{file.path}: row {row}", data, label, file.label is not None)

    def _checked(self, where: str, data: bytes | None, label: int | None, labelled: bool) -> Item | Bad:
        limit = len(self.classes) or MAX_CLASSES
        if not data:
            return Bad(where, "the image has no bytes")
        if labelled and (label is None or not 0 <= label < limit):
            return Bad(where, f"label {label} is out of range; labels are 0 to {limit - 1}")
        return Item(where, data, label)

    def fingerprint(self) -> str:
        return f"{self.name} {self.split} {fingerprint_files([Path(file.path) for file in self.files])}"


@datasets.register("parquet")
class ParquetConfig(SourceConfig):
    """Any images in the Hugging Face layout, or as plain bytes: a file, or a folder of shards in name order."""

    split: str | None = Field(None, description="which shards of a folder that holds several splits")

    def open(self) -> ImageSource:
        source = self.existing_source()
        files, split = parquet_files(source, self.split)
        return parquet_source(source.stem if source.is_file() else source.resolve().name, split, str(source), files)


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


def parquet_source(
    name: str, split: str, origin: str, files: Sequence[Path], classes: tuple[str, ...] | None = None
) -> ImageSource:
    """The rows of `files` in order. Reads their footers, and the labels where nobody names the classes.

    Without `classes` their names are those that Hugging Face wrote into the schema, else the numbers up to the
    highest label.

    Raises:
        DataError: no rows, a file that cannot be read or has other columns, labels in some files only.
    """
    opened: list[ParquetFileRows] = []
    told: list[tuple[str, ...]] = []
    start = 0
    for path in files:
        file, names = _look_at(path, start)
        opened.append(file)
        told.append(names)
        start += sum(file.groups)
    if not start:
        raise DataError(f"{origin} holds no images")
    labelled = opened[0].label is not None
    if any((file.label is not None) != labelled for file in opened):
        raise DataError(f"{origin}: some files have labels and some have none")
    for file, names in zip(opened, told, strict=True):
        if classes is None and names != told[0]:
            raise DataError(f"{file.path} names its classes in another way than {opened[0].path}")
    known = (classes or told[0] or _numbers(origin, opened)) if labelled else ()
    return ParquetSource(name, split, origin, known, tuple(opened))


def _look_at(path: Path, start: int) -> tuple[ParquetFileRows, tuple[str, ...]]:
    """A file's rows and columns, and the class names in its schema. Raises DataError."""
    with _open(path) as file:
        schema, meta = file.schema_arrow, file.metadata
        groups = tuple(meta.row_group(i).num_rows for i in range(meta.num_row_groups))
    image = next((c for c in IMAGE_COLUMNS if c in schema.names), None)
    if image is None:
        raise DataError(f"{path} has no column {' or '.join(IMAGE_COLUMNS)}; it has {', '.join(schema.names)}")
    kind = schema.field(image).type
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not _is_bytes(kind.field("bytes").type if is_struct else kind):
        raise DataError(
            f"{path}: column {image} is {kind}; it must be struct<bytes, path>, the Hugging Face layout, or binary"
        )
    label = next((c for c in LABEL_COLUMNS if c in schema.names), None)
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"{path}: column {label} is {schema.field(label).type}; labels are integers")
    names = _class_names(schema, label) if label else ()
    return ParquetFileRows(str(path), start, groups, image, is_struct, label), names


def _open(path: Path | str) -> pq.ParquetFile:
    try:  # without pre_buffer a range reads the pages it needs, not whole column chunks
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 18)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """What Hugging Face calls the classes, () where it does not say."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in told["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _numbers(origin: str, files: Sequence[ParquetFileRows]) -> tuple[str, ...]:
    """Classes called by number, up to the highest label there is. Raises DataError where no label can be used."""
    highest = -1
    for file in files:
        assert file.label is not None
        for batch in _batches(file, range(len(file.groups)), [file.label], rows=1 << 16):
            labels = batch.column(0).drop_null().to_numpy(zero_copy_only=False)
            usable = labels[(labels >= 0) & (labels < MAX_CLASSES)]
            highest = max(highest, int(usable.max(initial=0)) if len(usable) else -1)
    if highest < 0:
        raise DataError(f"{origin}: column {files[0].label} holds no label from 0 to {MAX_CLASSES - 1}")
    return tuple(map(str, range(highest + 1)))


def _rows(file: ParquetFileRows, first: int, last: int) -> Iterator[tuple[bytes | None, int | None]]:
    """Image bytes and label of rows first to last - 1 of a file. Raises DataError."""
    touched, row, begin = [], 0, 0
    for group, rows in enumerate(file.groups):
        if row + rows > first and row < last and rows:
            begin = begin if touched else row
            touched.append(group)
        row += rows
    columns = [f"{file.image}.bytes" if file.is_struct else file.image, *([file.label] if file.label else [])]
    row = begin
    for batch in _batches(file, touched, columns, _BATCH_ROWS, begin):
        part = batch.slice(max(first - row, 0), max(min(last - row, len(batch)) - max(first - row, 0), 0))
        row += len(batch)
        if len(part):
            data: Any = part.column(file.image)
            data = data.flatten()[0] if file.is_struct else data
            labels = part.column(file.label).to_pylist() if file.label else [None] * len(part)
            yield from zip(data.to_pylist(), labels, strict=True)
        if row >= last:
            return


def _batches(
    file: ParquetFileRows, groups: Sequence[int], columns: list[str], rows: int, begin: int = 0
) -> Iterator[pa.RecordBatch]:
    """Row groups in pieces. Raises DataError where the file is damaged or gone; `begin` is for its message."""
    with _open(file.path) as opened:
        if opened.metadata.num_rows != sum(file.groups):
            raise DataError(f"{file.path} has {opened.metadata.num_rows} rows, but had {sum(file.groups)} when opened")
        try:
            for batch in opened.iter_batches(batch_size=rows, row_groups=list(groups), columns=columns):
                yield batch
                begin += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file.path} cannot be read near row {begin}: {str(error).splitlines()[0]}") from None
