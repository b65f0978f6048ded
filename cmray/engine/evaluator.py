"""Generates and measures samples in this process, in fixed chunks of seeds.

The same chunks are worked through by one process or by many, in any order, and merged in one order: the numbers have
the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cmray.core.errors import DataError
from cmray.core.precond import to_pixels
from cmray.engine.images import ImageReader, ImageSet
from cmray.engine.measure import Gathered, Wanted, pixels_of, seed_blocks
from cmray.engine.model import Model, load_model
from cmray.engine.parts import Arrays, kept
from cmray.engine.prefix import Recalling, read_prefix, spent_on, write_prefix
from cmray.engine.session import one_thread
from cmray.metrics.extractors import Extractor, extractors
from cmray.samplers import samplers

#: blocks of seeds in one task; the unit that is merged by the driver
BLOCKS_PER_CHUNK = 8
#: bytes of networks that a process keeps for later tasks; searches of several models take turns on one process
KEPT_NETWORKS = 1 << 30


@dataclass(frozen=True)
class SampleTask:
    """One chunk: which model, how, which seeds, what is wanted of them. Everything plain, so that it travels.

    Args:
        weights: "student" or "ema RATE"; None is the first EMA.
        keep: the file that the arrays go to; None hands them back.
        fine: whether it is a piece of a chunk, which keeps the statistics of every block.
    """

    checkpoint: str
    sampler: dict[str, Any]
    wanted: tuple[Wanted, ...]
    first_seed: int
    count: int
    block: int
    weights: str | None = None
    keep: str | None = None
    fine: bool = False


@dataclass(frozen=True)
class ImagesTask:
    """One chunk of images that are there already. `keep` and `fine` as in SampleTask."""

    images: ImageSet
    wanted: tuple[Wanted, ...]
    first: int
    count: int
    block: int
    keep: str | None = None
    fine: bool = False


class Evaluator:
    """Holds the models and extractors that it has met."""

    def __init__(self, device: torch.device):
        self.device = device
        self._models: dict[tuple[str, str | None], Model] = {}
        self._extractors: dict[str, Extractor] = {}
        self._readers: dict[ImageSet, ImageReader] = {}

    def _model(self, checkpoint: str, weights: str | None = None) -> Model:
        key = (checkpoint, weights)
        model = self._models.pop(key, None)
        if model is None:
            sizes = {known: _nbytes(other) for known, other in self._models.items()}
            for known in list(sizes):  # the one used longest ago goes first; the new one is as large as any of them
                if sum(sizes.values()) + max(sizes.values()) > KEPT_NETWORKS:
                    del self._models[known], sizes[known]
            model = load_model(Path(checkpoint), self.device, weights)
        self._models[key] = model
        return model

    def _extractor(self, extractor: Any) -> Extractor:
        """By a registered name, or a mapping of the name and its options."""
        key = repr(extractor)
        if key not in self._extractors:
            self._extractors[key] = extractors.parse(extractor).build(self.device)
        return self._extractors[key]

    def measure(self, task: SampleTask) -> Arrays:
        """What the wanted extractors say of the samples of a chunk, all of them from one pass over the samples."""
        model, sampler = self._model(task.checkpoint, task.weights), samplers.parse(task.sampler)

        def images() -> Iterable[torch.Tensor]:
            for seeds in seed_blocks(task.first_seed, task.count, task.block):
                yield pixels_of(lambda seeds: model.images(sampler, seeds, block=task.block), seeds)

        try:
            return self._said(task, images())
        except DataError as error:
            raise DataError(f"{Path(task.checkpoint)} ({model.weights}, {sampler.title}): {error}") from None

    def describe(self, task: ImagesTask) -> Arrays:
        """What the wanted extractors say of a range of images that are there already."""

        def images() -> Iterable[torch.Tensor]:
            if task.images not in self._readers:
                self._readers = {task.images: ImageReader(task.images)}
            pixels = torch.from_numpy(np.array(self._readers[task.images].read(task.first, task.count)))
            yield from pixels.split(task.block)

        return self._said(task, images())

    def _said(self, task: SampleTask | ImagesTask, images: Iterable[torch.Tensor]) -> Arrays:
        def make() -> Arrays:
            gathered = [Gathered(self._extractor(w.extractor), w, task.fine) for w in task.wanted]
            for block in images:
                for one in gathered:
                    one.add(block)
            return {name: array for one in gathered for name, array in one.arrays().items()}

        return kept(task.keep, {name for w in task.wanted for name in w.arrays()}, make)

    def measure_extending(self, task: SampleTask, prefix: str | None, *more: Any) -> tuple[Any, int]:
        """What `measure` returns, bit for bit, and how many images the network evaluated.

        Args:
            prefix: a file of `keep_prefix` for the same seeds and all times but the last, whose samples are gone on
                from; None, or a file that is not there, samples from the first time.
            more: further arguments of `measure`.
        """
        model = self._model(task.checkpoint, task.weights)
        recalling = Recalling.of(model, task.first_seed, read_prefix(prefix))
        self._models[task.checkpoint, task.weights] = recalling
        try:
            return self.measure(task, *more), recalling.spent
        finally:
            self._models[task.checkpoint, task.weights] = model

    def keep_prefix(self, task: SampleTask, file: str, before: str | None) -> int:
        """Samples of a chunk, kept in a file; returns how many images the network evaluated for it, now or earlier.

        Args:
            before: the file for all times but the last, as in `measure_extending`.
        """
        if (there := spent_on(file)) is not None:
            return there
        model = Recalling.of(self._model(task.checkpoint, task.weights), task.first_seed, read_prefix(before))
        seeds = range(task.first_seed, task.first_seed + task.count)
        write_prefix(file, model.images(samplers.parse(task.sampler), seeds, block=task.block), model.spent)
        return model.spent

    def draw(
        self,
        checkpoint: str,
        weights: str | None,
        sampler: dict[str, Any],
        seeds: range,
        labels: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Samples as uint8 [N,C,H,W], one per seed. Raises DataError when some are not finite."""
        model, how = self._model(checkpoint, weights), samplers.parse(sampler)
        given = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        try:
            return pixels_of(lambda seeds: model.images(how, seeds, given), seeds).numpy()
        except DataError as error:
            raise DataError(f"{Path(checkpoint)} ({model.weights}, {how.title}): {error}") from None

    def images(self, checkpoint: str, sampler: dict[str, Any], seeds: list[int]) -> np.ndarray:
        return to_pixels(self._model(checkpoint).images(samplers.parse(sampler), seeds)).numpy()


def _nbytes(model: Model) -> int:
    return sum(tensor.nbytes for tensor in itertools.chain(model.net.parameters(), model.net.buffers()))


def chunks(
    checkpoint: Path,
    sampler: dict[str, Any],
    wanted: Sequence[Wanted],
    first_seed: int,
    count: int,
    block: int,
    weights: str | None = None,
    keep: Path | None = None,
) -> list[SampleTask]:
    """The fixed chunks of one measurement. `keep` is a folder for what they give."""
    return [
        SampleTask(
            str(checkpoint),
            sampler,
            tuple(wanted),
            r.start,
            len(r),
            block,
            weights,
            None if keep is None else str(keep / f"{r.start}-{len(r)}.npz"),
        )
        for r in seed_blocks(first_seed, count, block * BLOCKS_PER_CHUNK)
    ]


def image_chunks(images: ImageSet, wanted: Sequence[Wanted], block: int, keep: Path | None = None) -> list[ImagesTask]:
    """The fixed chunks of images that are there already."""
    return [
        ImagesTask(
            images,
            tuple(wanted),
            r.start,
            len(r),
            block,
            None if keep is None else str(keep / f"{r.start}-{len(r)}.npz"),
        )
        for r in seed_blocks(0, images.count, block * BLOCKS_PER_CHUNK)
    ]


#: a method of Evaluator and its arguments
Call = tuple[str, tuple[Any, ...]]


class Pool(Protocol):
    """Works through calls, anywhere and in any order."""

    @property
    def size(self) -> int:
        """How many calls are worked on at once."""
        ...

    def run(self, calls: Sequence[Call], got: Callable[[int, Any], None] = lambda *_: None) -> list[Any]:
        """Results in the order of the calls; `got` is told each (call's index, result) as it comes."""
        ...

    def close(self) -> None: ...


class InlinePool:
    """One evaluator, in this process.

    Args:
        one_thread: on a CPU it takes one thread, as actors do: sums over images have other bits on several. Images
            have not.
    """

    size = 1

    def __init__(self, device: torch.device, one_thread: bool = True):
        self._evaluator, self._one_thread = Evaluator(device), one_thread

    def run(self, calls: Sequence[Call], got: Callable[[int, Any], None] = lambda *_: None) -> list[Any]:
        results = []
        for i, (method, arguments) in enumerate(calls):
            with one_thread() if self._one_thread else nullcontext():
                results.append(getattr(self._evaluator, method)(*arguments))
            got(i, results[-1])
        return results

    def close(self) -> None:
        pass
