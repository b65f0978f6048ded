"""Feeds as a worker sees them: iterated in a thread of a Ray actor, timed over whole epochs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from cmray.config.run import RunConfig
from cmray.datasets.mapped import MappedDataset
from cmray.engine.batches import open_batches
from cmray.engine.loop import train
from cmray.engine.session import PlainSession, prepare_process
from cmray.tracking.events import read_events

#: sizes of batches, without end
Sizes = Callable[[], Iterator[int]]
#: where in an epoch the clock is read: inside the first window of a stream, away from waits at its end
MARK = 0.25


def over_time(sizes: Iterator[int], seconds: float) -> float:
    """Images per second, after a warm-up of a fifth of the time."""
    began, images, warm = time.perf_counter(), 0, False
    for size in sizes:
        took = time.perf_counter() - began
        if not warm:
            if took >= seconds / 5:
                began, warm = time.perf_counter(), True
            continue
        images += size
        if (took := time.perf_counter() - began) >= seconds:
            return images / took
    raise RuntimeError("the feed ended")


class Feed:
    """An actor that takes batches as fast as they come until it is told to stop."""

    def start(self, sizes: Sizes, epoch: float) -> None:
        self.marks: list[tuple[float, int]] = []
        self.taken, self.stopped, self.error = 0, False, None
        self.thread = threading.Thread(target=self._run, args=(sizes, epoch), daemon=True)
        self.thread.start()

    def _run(self, sizes: Sizes, epoch: float) -> None:
        prepare_process(1)  # threads of torch are counted by thread
        try:
            passed = 0
            batches: Any = sizes()
            for size in batches:
                self.taken += size
                if self.taken >= (passed + MARK) * epoch:
                    passed = int(self.taken / epoch - MARK) + 1
                    self.marks.append((time.perf_counter(), self.taken))
                if self.stopped:
                    break
            batches.close()
        except BaseException as error:
            self.error = repr(error)

    def state(self) -> tuple[int, float, float]:
        """(images so far, seconds that are measured, images per second in them), the first epoch left out."""
        if self.error is not None:
            raise RuntimeError(self.error)
        marks = self.marks[1:]
        if len(marks) < 2:
            return self.taken, 0.0, 0.0
        (began, first), (ended, last) = marks[0], marks[-1]
        return self.taken, ended - began, (last - first) / (ended - began)

    def stop(self) -> None:
        self.stopped = True
        self.thread.join()


def start_feeds(sizes: Sequence[Sizes], epoch: float, cpus: float) -> list[Any]:
    """An actor for each, all started at once. `epoch` is of one worker."""
    import ray

    actor: Any = ray.remote(num_cpus=cpus)(Feed)
    feeds = [actor.remote() for _ in sizes]
    ray.get([feed.start.remote(each, epoch) for feed, each in zip(feeds, sizes, strict=True)])
    return feeds


def stop_feeds(feeds: Sequence[Any]) -> None:
    import ray

    ray.get([feed.stop.remote() for feed in feeds])
    for feed in feeds:
        ray.kill(feed)


def wait_for_images(feeds: Sequence[Any], images: int) -> None:
    """Until each feed has given so many."""
    import ray

    while min(state[0] for state in ray.get([feed.state.remote() for feed in feeds])) < images:
        time.sleep(0.1)


def rates(sizes: Sequence[Sizes], epoch: float, seconds: float, cpus: float = 1) -> list[float]:
    """Images per second of each feed while all run, over whole epochs of at least `seconds`."""
    import ray

    feeds = start_feeds(sizes, epoch, cpus)
    while True:
        states = ray.get([feed.state.remote() for feed in feeds])
        if min(state[1] for state in states) >= seconds:
            break
        time.sleep(0.1)
    stop_feeds(feeds)
    return [state[2] for state in states]


def worker_sizes(run: RunConfig, box: Sequence[Any], rank: int = 0) -> Iterator[int]:
    """Batches as a trial's worker takes them. `box` holds the object store's reference to the dataset."""
    import ray

    data: Any = ray.get(box[0])
    data = data.open() if isinstance(data, MappedDataset) else data
    workers = run.resources.workers
    batches = open_batches(run, data, PlainSession(torch.device("cpu"), rank, workers))
    try:
        for step in count():
            yield len(batches.batch(step, rank, workers)[0])
    finally:
        batches.close()


def trained(run: RunConfig, box: Sequence[Any], folder: Path) -> list[dict[str, float]]:
    """The metrics that a short training run logs, for a Ray task."""
    import ray

    prepare_process(1)
    train(run, ray.get(box[0]), folder, None, PlainSession(torch.device("cpu")))
    return [event.metrics for event in read_events(folder / "events.jsonl") if event.kind == "train"]
