"""Works through an evaluator's calls on threads of this process: no start-up, and one copy of the libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import Any

import torch

from cmray.engine.evaluator import Call, Evaluator


class ThreadPool:
    """Evaluators on the CPU, one for each thread. Every call takes one core, as on an actor, for the same bits.

    Threads gain where networks are large enough that Python's lock is free most of the time: Inception on 2 cores is
    nearly twice as fast. Small networks gain more from processes, which are Ray's actors.

    Args:
        size: number of threads.
    """

    def __init__(self, size: int):
        self.size = size
        self._threads = ThreadPoolExecutor(size, "evaluator", initializer=torch.set_num_threads, initargs=(1,))
        self._idle: SimpleQueue[Evaluator] = SimpleQueue()
        for _ in range(size):
            self._idle.put(Evaluator(torch.device("cpu")))

    def run(self, calls: Sequence[Call], got: Callable[[int, Any], None] = lambda *_: None) -> list[Any]:
        """Results in the order of the calls; `got` is told each (call's index, result), in this thread, as it comes.

        Raises what a call raised; calls that were not begun are left out then.
        """
        results: list[Any] = [None] * len(calls)
        futures = {self._threads.submit(self._one, call): i for i, call in enumerate(calls)}
        try:
            for future in as_completed(futures):
                i = futures[future]
                results[i] = future.result()
                got(i, results[i])
        except BaseException:  # Ctrl-C too: what runs ends with its chunk
            for future in futures:
                future.cancel()
            raise
        return results

    def _one(self, call: Call) -> Any:
        method, arguments = call
        evaluator = self._idle.get()
        try:
            return getattr(evaluator, method)(*arguments)
        finally:
            self._idle.put(evaluator)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
