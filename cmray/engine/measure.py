"""Fréchet distances of a model's samples, block by block, so that any number of processes gets the same number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cmray.core.errors import DataError
from cmray.core.precond import to_pixels
from cmray.metrics.extractors import Extractor
from cmray.metrics.statistics import FeatureStatistics

#: seeds -> float images [-1, 1] [N,C,H,W]
Generate = Callable[[Sequence[int]], torch.Tensor]


def seed_blocks(first: int, count: int, block: int) -> list[range]:
    """The seeds first .. first+count-1 in fixed blocks; the unit of work and of rounding."""
    return [range(start, min(start + block, first + count)) for start in range(first, first + count, block)]


def block_statistics(generate: Generate, extractor: Extractor, seeds: Sequence[int]) -> FeatureStatistics:
    """Feature statistics of one block of samples. Raises DataError, with their number, when some are not finite."""
    images = generate(seeds)
    bad = int((~images.isfinite()).flatten(1).any(1).sum())
    if bad:  # as pixels they would look like black
        raise DataError(f"{bad} of {len(seeds)} samples hold NaN or infinite values: the model has diverged")
    statistics = FeatureStatistics(extractor.dim)
    statistics.update(extractor(to_pixels(images).to(extractor.device)))
    return statistics


def merge_in_order(blocks: Sequence[FeatureStatistics]) -> FeatureStatistics:
    """The statistics of all blocks, summed in the order given: floating-point sums depend on it."""
    total = FeatureStatistics(blocks[0].dim)
    for block in blocks:
        total.merge(block)
    return total
