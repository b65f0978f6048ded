"""Brings a prepared dataset to the workers through Ray Data."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cmray.cluster.reader import FAILED, Reader
from cmray.config.run import DataConfig
from cmray.core.errors import DataError
from cmray.datasets import ImageDataset
from cmray.datasets.location import Location
from cmray.datasets.manifest import Manifest, read_manifest, verify_shards
from cmray.datasets.mapped import map_shards
from cmray.datasets.shards import ShardReader, Unit, collect, rows_of
from cmray.datasets.verified import verify_once
from cmray.engine.stream import Rows, StreamedDataset

if TYPE_CHECKING:
    import ray

#: units of one execution of a Ray Data plan, and of one of its tasks
SEGMENT, PER_TASK = 4_096, 16
#: logical CPUs of a reading task: several runs stream at once through the one CPU that is left to Ray Data
READ_CPUS = 0.25
#: tasks of one stream at once; each new process of Ray's takes a second of a core to start
READERS = 2
#: bytes that Ray frees in a second of the blocks that were just read, and the longest wait for it: the copy for the
#: nodes is to take their place in the object store
FREED, LONGEST = 2**26, 2.0


def put_training_data(folder: Location, config: DataConfig, storage: Path) -> ray.ObjectRef:
    """What workers get, in the object store: the images, or how to get at them.

    Args:
        config: with `feed` resolved.
        storage: takes memory-mapped files and notes of what was verified; seen by all nodes.

    Raises:
        DataError: the shards are not what the manifest says.
    """
    import ray

    manifest = read_manifest(folder)
    if config.feed == "resident":
        return put_resident(folder, manifest)
    verify_once(folder, manifest, storage / "verified")
    if config.feed == "mmap":
        return ray.put(map_shards(folder, manifest, storage / "mapped"))
    return ray.put(StreamedDataset(folder, manifest, stream_units))


def put_resident(folder: Location | Path, manifest: Manifest) -> ray.ObjectRef:
    """A `resident_dataset` in the object store.

    Raises:
        DataError: the shards are not what the manifest says.
    """
    import ray

    return ray.put(resident_dataset(folder, manifest))


def describe(config: DataConfig, name: str, count: int, nbytes: int, on_ray: bool) -> str:
    """How a dataset is fed, in a line for people."""
    size = f"{name}: {count:,} images, {nbytes / 2**20:,.1f} MiB"
    if config.feed == "resident" and on_ray:
        return f"Ray Data streams {size}, resident: one copy in the memory of every node"
    if config.feed == "resident":
        return f"Reading {size}, resident: a copy in the memory of every process"
    if config.feed == "mmap":
        return f"Mapping {size}: one Arrow file, every node's page cache holds what is used"
    return f"Streaming {size} at every epoch, shuffled in windows of {config.shuffle_buffer:,} images"


def resident_dataset(folder: Location | Path, manifest: Manifest | None = None) -> ImageDataset:
    """Streams all shards of a prepared dataset through Ray Data, once, and puts them together in dataset order.

    The driver hands the result to Ray's object store; workers map that one read-only copy per node.

    Raises:
        DataError: the shards are not what the manifest says.
    """
    manifest = manifest or read_manifest(folder)
    # the hashes of files are checked here where the content's digest does not cover them
    verify_shards(folder, manifest, rehash=manifest.encoding != "raw")
    units = [Unit(block, 0, block.rows) for block in manifest.blocks()]
    dataset = collect(manifest, _batches(Location(folder), manifest, units, leave_nothing=True))
    gc.collect()  # Ray Data's own circles hold blocks
    pa.default_memory_pool().release_unused()  # Arrow keeps freed pages: half a CIFAR-10
    time.sleep(min(LONGEST, manifest.nbytes / FREED))
    return dataset


def stream_units(place: Location, manifest: Manifest, units: Iterator[Unit]) -> Iterator[Rows]:
    """`ReadUnits` through Ray Data: tasks anywhere in the cluster read and decode, rows come in the given order."""
    while segment := list(islice(units, SEGMENT)):
        yield from ((batch["image"], batch.get("label")) for batch in _batches(place, manifest, segment))


def _batches(
    place: Location, manifest: Manifest, units: Sequence[Unit], leave_nothing: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    import ray.data

    # rows on their way take a bounded part of the object store, however large the dataset
    _set_up(max(unit.rows for unit in units) * int(np.prod(manifest.shape)))
    # items, not a range: a range is made by tasks of one whole CPU, which trials may leave none of
    positions = ray.data.from_items(list(range(len(units))), override_num_blocks=-(-len(units) // PER_TASK))
    read: Any = Reader(place, manifest, tuple(units), leave_nothing)
    rows = positions.map_batches(read, batch_size=1, num_cpus=READ_CPUS, concurrency=READERS, zero_copy_batch=True)
    batches: Any = iter(rows.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1))
    try:
        yield from _in_order(batches, place, manifest, units)
    finally:
        batches.close()  # or its threads outlive an error, and end the process when they find Ray gone


def _in_order(
    batches: Iterator[dict[str, np.ndarray]], place: Location, manifest: Manifest, units: Sequence[Unit]
) -> Iterator[dict[str, np.ndarray]]:
    """Passes batches on, sure that they are the rows of the units one after the other.

    A unit that its task could not read is read here: what was wrong passes, or is raised as the user's own error.
    """
    seen = 0
    starts = np.cumsum([0, *(unit.rows for unit in units)])
    for batch in batches:
        failed = np.flatnonzero(batch["index"] == FAILED)
        for start, stop in zip([0, *(failed + 1)], [*failed, len(batch["index"])], strict=True):
            if start < stop:
                part = {name: column[start:stop] for name, column in batch.items()}
                at = int(np.searchsorted(starts, seen, side="right")) - 1
                if part["index"][0] != units[at].block.first + units[at].start + seen - starts[at]:
                    raise DataError(f"{place}: Ray Data gave rows in another order than asked for")
                seen += stop - start
                yield part
            if stop < len(batch["index"]):
                at = int(np.searchsorted(starts, seen, side="right")) - 1
                seen += units[at].rows
                yield rows_of(ShardReader(place, manifest), units[at])
    if seen != starts[-1]:
        raise DataError(f"{place}: Ray Data gave {seen} rows, not {starts[-1]}")


def _set_up(unit_bytes: int) -> None:
    """Rows in order, a bounded part of the object store, no progress bars and no logs of Ray Data's own."""
    import ray.data

    context = ray.data.DataContext.get_current()
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(object_store_memory=max(32 * 2**20, 8 * unit_bytes))
    context.target_max_block_size = unit_bytes  # tasks would else gather 128 MiB before they pass anything on
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is raised, and told once
