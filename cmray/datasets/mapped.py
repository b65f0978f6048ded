"""The whole dataset as one Arrow file that every process of a machine maps: the page cache is the only copy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cmray.core.errors import DataError
from cmray.datasets.base import ImageDataset
from cmray.datasets.location import Location, why
from cmray.datasets.manifest import Manifest
from cmray.datasets.shards import iterate
from cmray.datasets.writer import table_of


@dataclass(frozen=True)
class MappedDataset:
    """An Arrow IPC file of one record batch, and the manifest of the shards that it was made of."""

    path: Path
    manifest: Manifest

    def open(self) -> ImageDataset:
        """The dataset; images are a read-only view of the file. Raises DataError when the file is not what it was."""
        manifest = self.manifest
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(self.path))).get_batch(0)
            if batch.num_rows != manifest.count:
                raise DataError(f"{self.path} has {batch.num_rows} rows, not {manifest.count}; remove it")
            images = batch.column("image").storage.flatten().to_numpy().reshape(manifest.count, *manifest.shape)
            labels = batch.column("label").to_numpy() if manifest.classes else None
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"{self.path} cannot be mapped: {why(error)}; remove it") from None
        return ImageDataset(manifest.name, manifest.split, manifest.source, images, labels, manifest.classes)


def map_shards(folder: str | Path | Location, manifest: Manifest, cache: Path) -> MappedDataset:
    """Makes the Arrow file of a prepared dataset under `cache`, unless it is there. The shards must be verified.

    Raises:
        DataError: shards that cannot be read, or a cache that cannot be written.
    """
    path = cache / f"{manifest.name}-{manifest.digest[:16]}.arrow"
    if path.is_file():
        return MappedDataset(path, manifest)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _scratch(cache, manifest) as (images, labels):
            first = 0
            for pixels, told in iterate(folder, manifest):
                images[first : first + len(pixels)] = pixels
                if labels is not None:
                    labels[first : first + len(pixels)] = told
                first += len(pixels)
            batch = table_of(0, images, labels).to_batches()[0]  # its image column is the scratch file itself
            handle, name = tempfile.mkstemp(dir=cache, prefix=".map-")
            with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
        os.replace(name, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {why(error)}") from None
    return MappedDataset(path, manifest)


@contextmanager
def _scratch(cache: Path, manifest: Manifest) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Room for all images on the disk, as large as the memory may not be."""
    with tempfile.TemporaryFile(dir=cache) as file:
        images = np.memmap(file, np.uint8, "w+", shape=(manifest.count, *manifest.shape))
        yield images, np.empty(manifest.count, np.int64) if manifest.classes else None
