"""Runs trials on Ray, as many as fit: one-worker trials in actors that are used again, others under Ray Train."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from cmray.cluster.resources import Admission, Capacity
from cmray.cluster.train import MAX_FAILURES, train_ddp
from cmray.cluster.work import ActorSession, TrialSpec, attempted, keep_error, log_line, note_failure, run_trial
from cmray.config.run import ResourcesConfig
from cmray.core.errors import CmrayError


class _TrialActor:
    """A process that trains one trial after the other."""

    def __init__(self, gpu: bool):
        self.device = torch.device("cuda" if gpu else "cpu")

    def run(self, spec: TrialSpec, data: list[ray.ObjectRef]) -> None:
        session = ActorSession(self.device, Path(spec.folder))
        attempted(spec, lambda: run_trial(spec, ray.get(data[0]), session))


def _run_ddp(spec: TrialSpec, data: list[ray.ObjectRef], scratch: str) -> None:
    """Holds no CPU itself: its workers are Ray Train's, and the driver has counted them."""
    attempted(spec, lambda: train_ddp(spec, data[0], Path(scratch)))


@dataclass
class _Running:
    spec: TrialSpec
    nodes: list[int]
    actor: Any | None


class Dispatcher:
    """Starts trials in the order given; one that does not fit lets smaller ones behind it pass.

    A trial that fails on its own account is noted and does not sink the others; one whose process or node dies is
    started again from its last checkpoint, at most three times.

    Args:
        limit: most trials at once; None for as many as fit.
        scratch: a folder that all nodes share, for Ray Train's own bookkeeping.
        may_start: asked before a trial starts; once it says no, those that run are waited for, and no more.
    """

    def __init__(self, capacity: Capacity, limit: int | None, scratch: Path, may_start: Callable[[], bool]):
        self._capacity, self._limit, self._scratch, self._may_start = capacity, limit, scratch, may_start
        self._idle: dict[tuple[float, float], list[Any]] = defaultdict(list)

    def warm(self, resources: Sequence[ResourcesConfig]) -> None:
        """Begins to start the processes of the first trials; returns at once. `resources` is in their order."""
        admission = Admission(self._capacity, self._limit)
        for need in resources:
            if admission.admit(need) is not None and need.workers == 1:
                self._idle[_kind(need)].append(_make(need))

    def run(self, specs: Sequence[TrialSpec], data: ray.ObjectRef) -> None:
        """Returns when each trial has a result.json or an error.txt, was asked to stop, or may not start any more."""
        if len(specs) == 1 and specs[0].config.resources.workers > 1:  # this process is as good as another
            self._make_room(None)
            if self._may_start():
                _run_ddp(specs[0], [data], str(self._scratch))
            return
        admission = Admission(self._capacity, self._limit)
        waiting, deaths = list(specs), Counter[str]()
        running: dict[ray.ObjectRef, _Running] = {}
        while running or (waiting and self._may_start()):
            for spec in list(waiting) if self._may_start() else []:
                nodes = admission.admit(spec.config.resources)
                if nodes is not None:
                    waiting.remove(spec)
                    reference, actor = self._start(spec, data)
                    running[reference] = _Running(spec, nodes, actor)
            if not running:
                raise CmrayError(f"there is no room for {waiting[0].name} on {self._capacity.where}")
            ended, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for reference in ended:
                one = running.pop(reference)
                admission.release(one.spec.config.resources, one.nodes)
                if self._died(reference, one, deaths):
                    waiting.insert(0, one.spec)

    def _died(self, reference: ray.ObjectRef, one: _Running, deaths: Counter[str]) -> bool:
        """Takes the outcome of an attempt; whether the trial is to start again, because its process is gone."""
        try:
            ray.get(reference)
        except RayTaskError as error:
            note_failure(one.spec, error)
        except RayError as error:
            deaths[one.spec.name] += 1
            if deaths[one.spec.name] > MAX_FAILURES:
                note_failure(one.spec, error, deaths[one.spec.name])
            else:
                _, file = keep_error(one.spec, error)
                log_line(Path(one.spec.folder), f"its process died; it is started again, see errors/{file.name}")
                return True
            return False
        if one.actor is not None:
            self._idle[_kind(one.spec.config.resources)].append(one.actor)
        return False

    def _start(self, spec: TrialSpec, data: ray.ObjectRef) -> tuple[ray.ObjectRef, Any | None]:
        need = spec.config.resources
        if need.workers > 1:
            self._make_room(None)
            task = ray.remote(num_cpus=0, max_retries=0)(_run_ddp)
            return task.remote(spec, [data], str(self._scratch)), None
        kind = _kind(need)
        if not self._idle[kind]:
            self._make_room(kind)
            self._idle[kind].append(_make(need))
        actor = self._idle[kind].pop()
        return actor.run.remote(spec, [data]), actor

    def _make_room(self, kind: tuple[float, float] | None) -> None:
        """Ends actors that wait for trials of another size: what they hold was not counted as taken."""
        for other in [k for k in self._idle if k != kind]:
            for actor in self._idle.pop(other):
                ray.kill(actor)

    def close(self) -> None:
        """Ends all actors that wait for trials."""
        self._make_room(None)


def _kind(need: ResourcesConfig) -> tuple[float, float]:
    return need.cpus_per_worker, need.gpus_per_worker


def _make(need: ResourcesConfig) -> Any:
    remote = ray.remote(num_cpus=need.cpus_per_worker, num_gpus=need.gpus_per_worker)(_TrialActor)
    return remote.remote(need.gpus_per_worker > 0)
