"""The whole dataset as one Arrow file that every process of a machine maps: the page cache is the only copy."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cmray.core.errors import DataError
from cmray.core.files import write_atomic
from cmray.core.locks import waited_for
from cmray.datasets.base import ImageDataset
from cmray.datasets.location import Location, why
from cmray.datasets.manifest import ContentDigest, Manifest
from cmray.datasets.shards import iterate
from cmray.datasets.writer import table_of

#: for more than 2 GiB of pixels
LARGE = pa.ipc.IpcWriteOptions(allow_64bit=True)


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

    One process makes it while others wait for it.

    Raises:
        DataError: shards that cannot be read or are not what the manifest says, or a cache that cannot be written.
    """
    path = cache / f"{manifest.digest}.arrow"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with waited_for(cache / ".lock") as alone:
            if not _untouched(path):
                for left in cache.glob(".map-*") if alone else ():  # by a process that was killed
                    left.unlink()
                _write(folder, manifest, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot write {path}: {why(error)}") from None
    return MappedDataset(path, manifest)


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def _untouched(path: Path) -> bool:
    """Whether the file is there as it was written."""
    try:
        stat = path.stat()
        return json.loads(_note(path).read_text()) == [stat.st_size, stat.st_mtime_ns]
    except (OSError, ValueError):
        return False


def _write(folder: str | Path | Location, manifest: Manifest, path: Path) -> None:
    """Streams the shards into a scratch file and from there into the Arrow file: no copy in memory."""
    digest = ContentDigest(manifest.shape, manifest.classes)
    with tempfile.TemporaryFile(dir=path.parent, prefix=".map-") as file:
        os.posix_fallocate(file.fileno(), 0, manifest.nbytes)  # a full disk is an error here, and a crash below
        images = np.memmap(file, np.uint8, "r+", shape=(manifest.count, *manifest.shape))
        labels = np.empty(manifest.count, np.int64) if manifest.classes else None
        first = 0
        for pixels, told in iterate(folder, manifest):
            digest.update(pixels, told)
            images[first : first + len(pixels)] = pixels
            if labels is not None:
                assert told is not None
                labels[first : first + len(pixels)] = told
            first += len(pixels)
        if manifest.encoding == "raw" and digest.hexdigest() != manifest.digest:
            raise DataError(f"{folder}: the shards' content does not match the manifest's digest; prepare it again")
        batch = table_of(0, images, labels).to_batches()[0]  # its image column is the scratch file itself
        half = path.with_name(f".map-{uuid.uuid4().hex}")
        try:
            with half.open("wb") as out, pa.ipc.new_file(out, batch.schema, options=LARGE) as writer:
                writer.write_batch(batch)
            stat = half.stat()
            write_atomic(_note(path), json.dumps([stat.st_size, stat.st_mtime_ns]))
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
