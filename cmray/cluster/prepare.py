"""Decodes a dataset's images in Ray tasks, so that a preparation takes all cores of a machine or of a cluster."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from cmray.cluster.autoscale import cpus_to_come
from cmray.cluster.connect import connected, cores, result_of
from cmray.cluster.reader import make
from cmray.datasets.manifest import Manifest
from cmray.datasets.prepare import Piece, Preparation
from cmray.datasets.source import ArraySource

#: seconds that this process decodes before it asks itself whether Ray would be quicker
TRIAL = 1.0
#: seconds until a Ray of its own has started and its tasks have imported what they need
RAY_STARTS = 8.0


def prepare(preparation: Preparation, address: str | None, done: Callable[[int], None]) -> Manifest:
    """Runs a preparation, on Ray where that is quicker.

    Args:
        address: of a running cluster; all its nodes must see the source. None for this machine.
        done: told how many images are through.

    Raises:
        CmrayError: as the preparation does, or Ray cannot be reached.
    """
    with ExitStack() as stack:
        if address is None or isinstance(preparation.source, ArraySource):  # of arrays there is nothing but to copy
            return preparation.run(_HereFirst(stack), done)
        capacity = stack.enter_context(connected(address))
        return preparation.run(_RayMapper(int(cpus_to_come(capacity))), done)


class _HereFirst:
    """Makes pieces in this process, and in Ray's once it is clear that the rest will take long enough.

    Args:
        stack: closes the Ray that may be started.
    """

    def __init__(self, stack: ExitStack):
        self.stack = stack

    def __call__(self, work: Callable[[tuple[int, int]], Piece], ranges: Iterable[tuple[int, int]]) -> Iterator[Piece]:
        spans = deque(ranges)
        spent, made = 0.0, 0
        while spans:
            start, stop = spans.popleft()
            began = time.perf_counter()
            piece = work((start, stop))
            spent += time.perf_counter() - began
            made += stop - start
            yield piece
            left = sum(stop - start for start, stop in spans)
            if spent > TRIAL and saved_by_ray(spent / made * left, cores()) > 0:
                capacity = self.stack.enter_context(connected(None))
                yield from _RayMapper(int(capacity.cpus))(work, spans)
                return


def saved_by_ray(seconds: float, cpus: int) -> float:
    """What starting Ray saves of so many seconds of decoding; negative where it costs more."""
    return seconds * (1 - 1 / cpus) - RAY_STARTS


class _RayMapper:
    """Pieces in the order of their ranges; a bounded number of them is being made or waits to be written."""

    def __init__(self, cpus: int):
        self.ahead = 2 * max(1, cpus)

    def __call__(self, work: Callable[[tuple[int, int]], Piece], ranges: Iterable[tuple[int, int]]) -> Iterator[Piece]:
        import ray

        maker = ray.put(work)  # the source crosses once per node
        task = ray.remote(num_cpus=1)(make)
        waiting: deque[ray.ObjectRef] = deque()
        try:
            for span in ranges:
                waiting.append(task.remote(maker, span))
                if len(waiting) >= self.ahead:
                    yield result_of(waiting.popleft())
            while waiting:
                yield result_of(waiting.popleft())
        finally:
            for reference in waiting:
                ray.cancel(reference)
