"""Rows become Parquet shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmray.datasets.shards import Images


def table_of(first: int, images: Images, labels: np.ndarray | None) -> pa.Table:
    """Rows `index` (int64, position in the dataset), `image` (fixed-shape uint8 tensor [C,H,W], or encoded bytes)
    and, with labels, `label` (int64)."""
    image: pa.Array
    if isinstance(images, np.ndarray):
        values = pa.array(np.ascontiguousarray(images).reshape(-1))
        # built by hand: from_numpy_ndarray permutes the axes of images with one channel
        storage = pa.FixedSizeListArray.from_arrays(values, int(np.prod(images.shape[1:])))
        image = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), images.shape[1:]), storage)
    else:
        image = pa.array(images, pa.binary())
    columns: dict[str, Any] = {"index": pa.array(np.arange(first, first + len(images)), pa.int64()), "image": image}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    return pa.table(columns)


class ShardFile:
    """One Parquet file, written block by block."""

    def __init__(self, path: Path, schema: pa.Schema):
        raw = isinstance(schema.field("image").type, pa.FixedShapeTensorType)
        # Parquet keeps a uint8 as four bytes; split into streams, the three that are zero vanish
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd" if raw else "none",
            use_dictionary=False,
            use_byte_stream_split=raw,
            write_page_checksum=True,
        )
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.rows += table.num_rows

    def close(self) -> None:
        self._writer.close()


class ShardWriter:
    """Regroups pieces into blocks of equal size and writes them into the current shard."""

    def __init__(self, folder: Path, group: int, first: int):
        self.folder, self.group, self.first = folder, group, first
        self.rows = 0  # of the current shard
        self._path = folder / f".shard-{os.getpid()}.tmp"
        self._file: ShardFile | None = None
        self._images: list[Any] = []
        self._labels: list[np.ndarray] = []
        self._held = 0

    @property
    def bytes(self) -> int:
        return self._path.stat().st_size if self._file is not None else 0

    def add(self, images: Images, labels: np.ndarray | None) -> None:
        self._images.append(images)
        if labels is not None:
            self._labels.append(labels)
        self._held += len(images)
        self.rows += len(images)
        while self._held >= self.group:
            self._flush(self.group)

    def _flush(self, rows: int) -> None:
        images: Any
        if isinstance(self._images[0], np.ndarray):
            images = self._images[0] if len(self._images) == 1 else np.concatenate(self._images)
        else:
            images = [data for piece in self._images for data in piece]
        labels = np.concatenate(self._labels) if self._labels else None
        table = table_of(self.first, images[:rows], labels[:rows] if labels is not None else None)
        if self._file is None:
            self._file = ShardFile(self._path, table.schema)
        self._file.write(table)
        self.first += rows
        self._held -= rows
        self._images = [images[rows:]] if self._held else []
        self._labels = [labels[rows:]] if labels is not None and self._held else []

    def close(self) -> tuple[Path, int] | None:
        """Ends the shard. Its file and rows; None when it has none."""
        if self._held:
            self._flush(self._held)
        if self._file is None:
            return None
        self._file.close()
        rows, self._file, self.rows = self._file.rows, None, 0
        return self._path, rows

    def abort(self) -> None:
        self._file = None
        self._path.unlink(missing_ok=True)
