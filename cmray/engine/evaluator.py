"""Generates and measures samples in this process, in fixed chunks of seeds.

The same chunks are worked through by one process or by many, in any order, and merged in one order: the numbers have
the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cmray.core.precond import to_pixels
from cmray.engine.measure import block_statistics, merge_in_order, seed_blocks
from cmray.engine.model import Model, load_model
from cmray.metrics.extractors import Extractor, extractors
from cmray.metrics.statistics import FeatureStatistics
from cmray.samplers import samplers

#: blocks of seeds in one task; the unit that is merged by the driver
BLOCKS_PER_CHUNK = 8


@dataclass(frozen=True)
class SampleTask:
    """One chunk: which model, how, which seeds. Everything plain, so that it travels."""

    checkpoint: str
    sampler: dict[str, Any]
    extractor: str
    first_seed: int
    count: int
    block: int


class Evaluator:
    """Holds the models and extractors that it has met."""

    def __init__(self, device: torch.device):
        self.device = device
        self._models: dict[str, Model] = {}
        self._extractors: dict[str, Extractor] = {}

    def _model(self, checkpoint: str) -> Model:
        if checkpoint not in self._models:
            self._models = {checkpoint: load_model(Path(checkpoint), self.device)}  # one at a time: they may be large
        return self._models[checkpoint]

    def measure(self, task: SampleTask) -> dict[str, np.ndarray]:
        model = self._model(task.checkpoint)
        if task.extractor not in self._extractors:
            self._extractors[task.extractor] = extractors.parse(task.extractor).build(self.device)
        extractor, sampler = self._extractors[task.extractor], samplers.parse(task.sampler)

        def generate(seeds: Sequence[int]) -> torch.Tensor:
            return model.images(sampler, seeds, block=task.block)

        blocks = seed_blocks(task.first_seed, task.count, task.block)
        return merge_in_order([block_statistics(generate, extractor, seeds) for seeds in blocks]).to_arrays()

    def images(self, checkpoint: str, sampler: dict[str, Any], seeds: list[int]) -> np.ndarray:
        return to_pixels(self._model(checkpoint).images(samplers.parse(sampler), seeds)).numpy()


def chunks(
    checkpoint: Path, sampler: dict[str, Any], extractor: str, first_seed: int, count: int, block: int
) -> list[SampleTask]:
    """The fixed chunks of one measurement."""
    size = block * BLOCKS_PER_CHUNK
    return [
        SampleTask(str(checkpoint), sampler, extractor, r.start, len(r), block)
        for r in seed_blocks(first_seed, count, size)
    ]


def merge_chunks(results: Sequence[dict[str, np.ndarray]]) -> FeatureStatistics:
    return merge_in_order([FeatureStatistics.from_arrays(result) for result in results])


#: a method of Evaluator and its arguments
Call = tuple[str, tuple[Any, ...]]


class Pool(Protocol):
    """Works through calls, anywhere and in any order."""

    def run(self, calls: Sequence[Call], got: Callable[[int, Any], None] = lambda *_: None) -> list[Any]:
        """Results in the order of the calls; `got` is told each (call's index, result) as it comes."""
        ...

    def close(self) -> None: ...


class InlinePool:
    """One evaluator, in this process."""

    def __init__(self, device: torch.device):
        self._evaluator = Evaluator(device)

    def run(self, calls: Sequence[Call], got: Callable[[int, Any], None] = lambda *_: None) -> list[Any]:
        results = []
        for i, (method, arguments) in enumerate(calls):
            results.append(getattr(self._evaluator, method)(*arguments))
            got(i, results[-1])
        return results

    def close(self) -> None:
        pass
