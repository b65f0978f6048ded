"""Chunks of a measurement cut into smaller tasks, where a pool works on more at once than there are chunks.

What the pieces of a chunk say is put together in the order in which the chunk itself adds it up: the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from cmray.engine.evaluator import BLOCKS_PER_CHUNK, ImagesTask, SampleTask
from cmray.engine.measure import add_groups, groups_in, seed_blocks, stacked
from cmray.engine.parts import Arrays
from cmray.metrics.statistics import FeatureStatistics

T = TypeVar("T", SampleTask, ImagesTask)


def cut(chunks: Sequence[T], pool_size: int) -> list[list[T]]:
    """The pieces of each chunk: itself, or so few and large ones that all of a pool has two tasks or more.

    A piece keeps the statistics of its blocks, 32 MiB each for 2,048 features, so chunks are left alone where there
    are enough of them, as there are in long measurements.
    """
    pieces = [[chunk] for chunk in chunks]
    blocks = BLOCKS_PER_CHUNK
    while pool_size > 1 and blocks > 1 and sum(map(len, pieces)) < 2 * pool_size:
        blocks //= 2
        pieces = [_pieces(chunk, blocks * chunk.block) for chunk in chunks]
    return pieces


def _pieces(chunk: T, size: int) -> list[T]:
    first = chunk.first_seed if isinstance(chunk, SampleTask) else chunk.first
    if chunk.count <= size:
        return [chunk]
    out = []
    for r in seed_blocks(first, chunk.count, size):
        keep = None if chunk.keep is None else str(Path(chunk.keep).with_name(f"{r.start}-{len(r)}.npz"))
        where = {"first_seed" if isinstance(chunk, SampleTask) else "first": r.start}
        out.append(replace(chunk, count=len(r), fine=True, keep=keep, **where))
    return out


def joined(parts: Iterable[Mapping[str, np.ndarray]]) -> Arrays:
    """What a chunk gives, from what its pieces gave, in their order; one of them is held at a time."""
    statistics: dict[str, list[FeatureStatistics]] = {}
    rows: dict[str, list[np.ndarray]] = {}
    for part in parts:
        prefixes = [name.removesuffix("outer") for name in part if name.endswith("outer")]
        for prefix in prefixes:
            add_groups(statistics.setdefault(prefix, []), groups_in(part, prefix), fine=False)
        gathered = {f"{prefix}{name}" for prefix in prefixes for name in ("n", "sum", "outer")}
        for name in part.keys() - gathered:
            rows.setdefault(name, []).append(part[name])
    out = {name: np.concatenate(some) for name, some in rows.items()}
    for prefix, groups in statistics.items():
        out |= stacked(prefix, groups)
    return out
