"""A pool of Ray actors that generate and measure samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from cmray.cluster.at_hand import Packed, pack
from cmray.core.errors import CmrayError
from cmray.engine.evaluator import Call, Evaluator
from cmray.engine.session import prepare_process

MAX_RETRIES = 3


class _EvaluatorActor(Evaluator):
    def __init__(self, cpus: int, gpu: bool):
        prepare_process(cpus)
        super().__init__(torch.device("cuda" if gpu else "cpu"))

    def run_packed(self, packed: Packed) -> tuple[Any, dict[str, bytes]]:
        """A call that names files of the driver's working copy of an object store."""
        return packed.run(self, ray.get)


class EvaluatorPool:
    """Actors that work through tasks in any order; results come back in the order of the tasks.

    Args:
        size: number of actors, each with `cpus` logical CPUs and `gpus` GPUs.
    """

    def __init__(self, size: int, cpus: float = 1, gpus: float = 0):
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(_EvaluatorActor)
        self.size = size
        self._make = lambda: actor.remote(max(1, int(cpus)), gpus > 0)
        self._actors: list[Any] = [self._make() for _ in range(size)]

    def run(self, calls: Sequence[Call], got: Callable[[int, Any], None] = lambda *_: None) -> list[Any]:
        """[(method, arguments)] -> results in the same order.

        A call whose actor died is given to a new one, at most three times.

        Args:
            got: called with (the call's index, its result) as results come.

        Raises:
            CmrayError: an actor died too often on the same call; or the error the call itself raised.
        """
        results: list[Any] = [None] * len(calls)
        waiting = list(reversed(range(len(calls))))
        tries = [0] * len(calls)
        busy: dict[Any, tuple[int, int]] = {}  # object reference -> (call, actor)
        idle = list(range(len(self._actors)))
        packed: dict[int, Packed | None] = {}
        while waiting or busy:
            while waiting and idle:
                call, actor = waiting.pop(), idle.pop()
                method, arguments = calls[call]
                packed[call] = pack(method, arguments, lambda path: ray.put(path.read_bytes()))
                if packed[call] is not None:
                    method, arguments = "run_packed", (packed[call],)
                busy[getattr(self._actors[actor], method).remote(*arguments)] = (call, actor)
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=1.0)
            for reference in ready:
                call, actor = busy.pop(reference)
                idle.append(actor)
                try:
                    results[call] = ray.get(reference)
                except RayActorError as error:
                    tries[call] += not error.preempted  # that its node was taken away says nothing of the call
                    if tries[call] > MAX_RETRIES:
                        raise CmrayError(f"evaluators died {tries[call]} times on the same samples: {error}") from error
                    self._actors[actor] = self._make()
                    waiting.append(call)
                    continue
                except RayTaskError as error:
                    cause = error.cause
                    raise (cause if isinstance(cause, CmrayError) else error) from None
                sent = packed.pop(call)
                if sent is not None:
                    results[call], files = results[call]
                    sent.keep(files)
                got(call, results[call])
        return results

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
