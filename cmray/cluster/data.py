"""Brings a prepared dataset to the workers through Ray Data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray
import ray.data

from cmray.core.errors import DataError
from cmray.datasets import ImageDataset
from cmray.datasets.shards import collect, read_manifest, shard_paths, verify_shards

#: a larger dataset does not stay whole in the memory of every node
RESIDENT_LIMIT = 16 * 2**30


def resident_dataset(folder: Path) -> ImageDataset:
    """Streams all shards of a prepared dataset through Ray Data, once, and puts them together in dataset order.

    The driver hands the result to Ray's object store; workers map that one read-only copy per node.

    Raises:
        DataError: the shards are not what the manifest says, or too large to be resident.
    """
    manifest = read_manifest(folder)
    verify_shards(folder, manifest, rehash=False)
    if manifest.nbytes > RESIDENT_LIMIT:
        raise DataError(
            f"{folder} holds {manifest.nbytes / 2**30:.0f} GiB of pixels; datasets are kept in memory and take at most "
            f"{RESIDENT_LIMIT / 2**30:.0f} GiB"
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stream = ray.data.read_parquet(shard_paths(folder, manifest))
    batches: Any = stream.iter_batches(batch_size=None, batch_format="numpy")
    return collect(manifest, list(batches))
