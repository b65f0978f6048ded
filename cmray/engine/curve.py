"""The Fréchet curve that a run draws of itself, in a thread beside the training."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from cmray.core.precond import Denoiser
from cmray.core.protocol import BLOCK
from cmray.core.rng import SEED_BASE
from cmray.engine.batches import TrainingData, all_images
from cmray.engine.measure import block_statistics, seed_blocks
from cmray.engine.model import make_sampler, sample_seeds
from cmray.metrics.extractors import extractors
from cmray.metrics.frechet import covariance_root, frechet_distance
from cmray.metrics.measures.base import Estimate
from cmray.metrics.measures.fd import frechet_error
from cmray.metrics.reference import reference_statistics
from cmray.metrics.statistics import FeatureStatistics, merged
from cmray.samplers import Sampler
from cmray.tracking.records import Event

if TYPE_CHECKING:
    from cmray.engine.state import TrainState


class Curve:
    """Measures the first EMA on fixed seeds, with a network, an extractor and on a GPU a stream of its own.

    So `measure` may run in another thread than the training: they share no weights, random numbers or modes. The
    extractor runs on the CPU's copy of what the network made.

    Args:
        state: of the run whose curve it is.
        data: what the samples are compared with; read here, once.
    """

    def __init__(self, state: TrainState, data: TrainingData):
        run, config = state.run, state.run.curve
        if config is None:
            raise ValueError("this run draws no curve")
        self._config, self._device = config, state.session.device
        self._shape, self._num_classes = state.shape, state.num_classes
        self._net = state.frozen_net()
        self._denoise = Denoiser(self._net.module, run.precond())
        own = run.objective.own_nfe  # a distilled model is right for one number of steps
        self._samplers = {nfe: make_sampler(run, nfe) for nfe in (config.nfe if own is None else (own,))}
        self._extractor = extractors.parse(config.extractor).build(torch.device("cpu"))
        self._reference = reference_statistics(self._extractor, all_images(data))
        self._root = covariance_root(self._reference)
        #: 95% intervals of what was measured last, where it took several blocks of samples
        self.intervals: dict[str, tuple[float, float]] = {}
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._taken = torch.cuda.Event() if self._stream is not None else None

    def take(self, state: TrainState) -> None:
        """Copies the weights that are measured next, on a GPU without waiting for it. Not while `measure` runs."""
        state.copy_average(self._net)
        if self._taken is not None:
            self._taken.record(torch.cuda.current_stream(self._device))

    def measure(self, leave: threading.Event | None = None) -> dict[str, float]:
        """{"fd/digits@1": value, ...} of the weights that were taken.

        Args:
            leave: once it is set, no further block of samples is begun.

        Raises:
            DataError: samples that are not finite.
            CancelledError: `leave` was set.
        """
        blocks = seed_blocks(SEED_BASE["curve"], self._config.num_samples, BLOCK)
        out = {}
        with self._apart():
            for nfe, sampler in self._samplers.items():
                statistics = []
                for seeds in blocks:
                    if leave is not None and leave.is_set():
                        raise CancelledError
                    statistics.append(self._block(sampler, seeds))
                key, total = f"{self._config.metric_name}@{nfe}", merged(statistics)
                out[key] = frechet_distance(total, self._reference, self._root)
                self._keep_interval(key, out[key], statistics, total)
        return out

    def _keep_interval(
        self, key: str, value: float, statistics: Sequence[FeatureStatistics], total: FeatureStatistics
    ) -> None:
        self.intervals.pop(key, None)
        error = frechet_error(statistics, total, self._reference, self._root)
        if error is not None and math.isfinite(value + error):
            known = Estimate.student(value, error, len(statistics) - 1, least=0.0)
            self.intervals[key] = (known.low or 0.0, known.high or 0.0)

    def _block(self, sampler: Sampler, seeds: Sequence[int]) -> FeatureStatistics:
        generate = partial(
            sample_seeds,
            self._denoise,
            sampler,
            shape=self._shape,
            num_classes=self._num_classes,
            device=self._device,
        )
        return block_statistics(generate, self._extractor, seeds)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """On a GPU: its own stream, behind the copy of the weights and with nothing left running at the end."""
        if self._stream is None or self._taken is None:
            yield
            return
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            self._stream.wait_event(self._taken)
            try:
                yield
            finally:
                self._stream.synchronize()  # the next copy of weights is on another stream


class CurvePoints:
    """Measures points of a curve in a thread while the trainer goes on: one at a time, in order, none left out.

    All methods are for the trainer's thread, in which points are handed on.

    Args:
        add: told of each point, in the order of their steps, as an event of the step it was taken at.
    """

    def __init__(self, curve: Curve, add: Callable[[Event], None]):
        self._curve, self._add = curve, add
        # torch counts threads per thread, and sums over several of them come out with other bits
        self._thread = ThreadPoolExecutor(1, "cmray-curve", torch.set_num_threads, (torch.get_num_threads(),))
        self._leave = threading.Event()
        self._pending: tuple[Event, Future[dict[str, float]]] | None = None

    def start(self, state: TrainState) -> None:
        """Takes the weights as they are now and has them measured. Waits first for the point before."""
        self.wait()
        self._curve.take(state)
        event = Event(kind="curve", step=state.step, nimg=state.nimg, time=time.time(), metrics={})
        self._pending = event, self._thread.submit(self._curve.measure, self._leave)

    def poll(self) -> None:
        """Hands on the point that was measured meanwhile, if any. Raises what measuring it raised."""
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self, before: int | None = None) -> None:
        """Hands on the point that is being measured, once it is there. Raises what measuring it raised.

        Args:
            before: waits for points of earlier steps only.
        """
        if self._pending is None or (before is not None and self._pending[0].step >= before):
            return
        event, measured = self._pending
        metrics = measured.result()
        self._pending = None
        self._add(event.model_copy(update={"metrics": metrics, "intervals": dict(self._curve.intervals)}))

    def close(self) -> None:
        """Gives up the point that is being measured, and ends the thread."""
        self._leave.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
