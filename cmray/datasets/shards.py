"""Rows of a prepared dataset: written into Parquet shards, read back block by block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmray.core.errors import DataError
from cmray.datasets.base import ImageDataset
from cmray.datasets.images import BadImage, decode
from cmray.datasets.location import Location, why
from cmray.datasets.manifest import Block, Manifest, group_rows, read_manifest, verify_shards

#: raw bytes of the images that are shuffled together when streaming
WINDOW_BYTES = 96 * 2**20
Images = np.ndarray | Sequence[bytes]


def default_window(shape: Sequence[int], count: int) -> int:
    """Images of a window of about 96 MiB, at least four blocks and at most the dataset."""
    return int(min(count, max(4 * group_rows(shape), WINDOW_BYTES // int(np.prod(shape)))))


@dataclass(frozen=True)
class Unit:
    """Rows start <= i < stop of a block, read as one."""

    block: Block
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


class ShardReader:
    """Blocks of a prepared dataset in any order. Keeps a few files open; make one per process or thread.

    Args:
        folder: the prepared dataset.
        manifest: its manifest.
    """

    OPEN_FILES = 8

    def __init__(self, folder: str | Path | Location, manifest: Manifest):
        self.place, self.manifest = Location(folder), manifest
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def table(self, block: Block) -> pa.Table:
        """The rows of a block as they are stored. Raises DataError."""
        name = self.manifest.shards[block.shard].file
        try:
            if block.shard not in self._files:
                self._files[block.shard] = pq.ParquetFile(
                    self.place.open(name), pre_buffer=True, page_checksum_verification=True
                )
                while len(self._files) > self.OPEN_FILES:
                    self._files.popitem(last=False)[1].close()
            self._files.move_to_end(block.shard)
            table = self._files[block.shard].read_row_group(block.group, use_threads=False)
        except (pa.ArrowException, OSError, IndexError, RuntimeError) as error:
            raise DataError(f"{self.place}/{name} cannot be read: {why(error)}") from None
        if table.column("index")[0].as_py() != block.first:
            raise DataError(
                f"{self.place}/{name}: block {block.group} begins with image {table.column('index')[0].as_py()}, not "
                f"{block.first} as its manifest says; prepare the dataset again"
            )
        if table.num_rows != block.rows:
            raise DataError(
                f"{self.place}/{name}: block {block.group} has {table.num_rows} rows, not {block.rows} as its manifest "
                f"says; prepare the dataset again"
            )
        return table

    def read(self, block: Block) -> tuple[np.ndarray, np.ndarray | None]:
        """(uint8 [rows, C, H, W], int64 [rows] or None). The arrays may be read-only. Raises DataError."""
        stored, labels = self.stored(block)
        if isinstance(stored, np.ndarray):
            return stored, labels
        images = np.empty((len(stored), *self.manifest.shape), np.uint8)
        for i, data in enumerate(stored):
            try:
                images[i] = decode(data)
            except (BadImage, ValueError) as error:
                name = self.manifest.shards[block.shard].file
                raise DataError(f"{self.place}/{name}: image {block.first + i} cannot be decoded: {error}") from None
        return images, labels

    def read_unit(self, unit: Unit) -> tuple[np.ndarray, np.ndarray | None]:
        """As `read`, of a part of a block. Raises DataError."""
        images, labels = self.read(unit.block)
        return images[unit.start : unit.stop], labels[unit.start : unit.stop] if labels is not None else None

    def stored(self, block: Block) -> tuple[Images, np.ndarray | None]:
        """The rows of a block, images as they are stored: pixels, or encoded bytes. Raises DataError."""
        table = self.table(block)
        column = table.column("image").combine_chunks()
        labels = table.column("label").to_numpy() if self.manifest.classes else None
        if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < len(self.manifest.classes):
            bad = labels.max() if labels.max() >= len(self.manifest.classes) else labels.min()
            raise DataError(
                f"{self.place}/{self.manifest.shards[block.shard].file}: label {bad} is out of range; "
                f"{self.manifest.name} has classes 0 to {len(self.manifest.classes) - 1}"
            )
        if self.manifest.encoding != "raw":
            return column.to_pylist(), labels
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        values = column.storage.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(block.rows, *self.manifest.shape), labels


def iterate(folder: str | Path | Location, manifest: Manifest) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """All blocks in the order of the dataset, one in memory at a time."""
    reader = ShardReader(folder, manifest)
    for block in manifest.blocks():
        yield reader.read(block)


def collect(manifest: Manifest, batches: Iterable[dict[str, np.ndarray]]) -> ImageDataset:
    """A dataset from batches of rows in any order: the `index` column puts them in place.

    Raises:
        DataError: rows are missing or twice there, or the content is not what the manifest's digest says.
    """
    images = np.empty((manifest.count, *manifest.shape), dtype=np.uint8)
    labels = np.empty(manifest.count, dtype=np.int64) if manifest.classes else None
    seen = np.zeros(manifest.count, dtype=np.int64)
    for batch in batches:
        index = batch["index"]
        if len(index) and not 0 <= index.min() <= index.max() < manifest.count:
            raise DataError(f"{manifest.name}: a row's index is outside 0 to {manifest.count - 1}; prepare it again")
        images[index] = np.stack(list(batch["image"])) if batch["image"].dtype == object else batch["image"]
        if labels is not None:
            labels[index] = batch["label"]
        np.add.at(seen, index, 1)
    if not (seen == 1).all():
        raise DataError(f"{manifest.name}: {(seen != 1).sum()} of {manifest.count} rows are missing or doubled")
    dataset = ImageDataset(manifest.name, manifest.split, manifest.source, images, labels, manifest.classes)
    # of encoded images the digest is over the bytes; there the hashes of the files vouch
    if manifest.encoding == "raw" and dataset.digest() != manifest.digest:
        raise DataError(f"{manifest.name}: the shards' content does not match the manifest's digest; prepare it again")
    return dataset


def rows_of(reader: ShardReader, unit: Unit) -> dict[str, np.ndarray]:
    """A unit as the columns that `collect` takes. Raises DataError."""
    images, labels = reader.read_unit(unit)
    rows = {"index": np.arange(unit.block.first + unit.start, unit.block.first + unit.stop), "image": images}
    return rows if labels is None else {**rows, "label": labels}


def read_shards(folder: str | Path | Location) -> ImageDataset:
    """The whole dataset read in this process, checked against its manifest. Raises DataError."""
    manifest = read_manifest(folder)
    verify_shards(folder, manifest, rehash=True)
    reader = ShardReader(folder, manifest)
    return collect(manifest, (rows_of(reader, Unit(block, 0, block.rows)) for block in manifest.blocks()))
