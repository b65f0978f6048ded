"""Decodes a dataset's images in Ray tasks, so that a preparation takes all cores of a machine or of a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from cmray.cluster.connect import connected
from cmray.cluster.reader import make
from cmray.datasets.manifest import Manifest
from cmray.datasets.prepare import Piece, Preparation, one_after_the_other
from cmray.datasets.source import ArraySource

#: a source with fewer images is decoded in this process: Ray takes seconds to start
WORTH_IT = 20_000


def prepare(preparation: Preparation, address: str | None, done: Callable[[int], None]) -> Manifest:
    """Runs a preparation, on Ray where that is quicker.

    Args:
        address: of a running cluster; all its nodes must see the source. None for Ray on this machine.
        done: told how many images are through.

    Raises:
        CmrayError: as the preparation does, or Ray cannot be reached.
    """
    left = preparation.count - preparation.progress.position
    decoded = isinstance(preparation.source, ArraySource)  # nothing to do but to copy
    if decoded or (address is None and left < WORTH_IT):
        return preparation.run(one_after_the_other, done)
    with connected(address) as capacity:
        return preparation.run(_RayMapper(int(capacity.cpus)), done)


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
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            for reference in waiting:
                ray.cancel(reference)


def _result(reference: object) -> Piece:
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)  # type: ignore[call-overload]
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
