"""How much fits at once. Trials that start without room for their workers would wait for each other forever."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cmray.config.run import ResourcesConfig
from cmray.core.errors import ConfigError

#: logical CPUs that trials never take: Ray Data hangs without one
DATA_CPUS = 1


@dataclass(frozen=True)
class Capacity:
    """Logical CPUs and GPUs of a cluster, the one for Ray Data included."""

    cpus: float
    gpus: float
    where: str  # "this machine" or an address, for messages
    nodes: tuple[tuple[float, float], ...] = ()  # (CPUs, GPUs) of each node; empty stands for a single one

    @property
    def free_cpus(self) -> float:
        return self.cpus - DATA_CPUS

    def workers_that_fit(self, cpus: float, gpus: float) -> int:
        """How many workers of this size fit on the nodes, a worker being on one node."""
        nodes = list(self.nodes or ((self.cpus, self.gpus),))
        largest = max(range(len(nodes)), key=lambda i: nodes[i][0])
        nodes[largest] = (nodes[largest][0] - DATA_CPUS, nodes[largest][1])
        count = 0
        for have_cpus, have_gpus in nodes:
            fits = [math.floor(have / need + 1e-9) for have, need in ((have_cpus, cpus), (have_gpus, gpus)) if need > 0]
            count += max(0, min(fits))
        return count


def check_fits(resources: ResourcesConfig, capacity: Capacity, trial: str) -> None:
    """Raises ConfigError when one trial alone needs more than there is."""
    for kind, need_each, have in (
        ("cpus", resources.cpus_per_worker, capacity.free_cpus),
        ("gpus", resources.gpus_per_worker, capacity.gpus),
    ):
        need = resources.workers * need_each
        if need > have + 1e-9:
            raise ConfigError(
                f"{trial}: resources.workers {resources.workers} x {kind}_per_worker {need_each:g} "
                f"needs {need:g} {kind}, "
                f"but {capacity.where} has {have:g}"
            )
    fits = capacity.workers_that_fit(resources.cpus_per_worker, resources.gpus_per_worker)
    if resources.workers > fits:
        raise ConfigError(
            f"{trial}: resources.workers is {resources.workers}, but only {fits} workers of "
            f"{resources.cpus_per_worker:g} cpus and {resources.gpus_per_worker:g} gpus fit on the nodes of "
            f"{capacity.where}"
        )


def max_concurrent(trials: Sequence[ResourcesConfig], capacity: Capacity, limit: int | None = None) -> int:
    """How many trials may run at once so that each gets all its workers: by the largest of them, at least 1."""
    cpus = max(r.cpus_per_worker for r in trials)
    gpus = max(r.gpus_per_worker for r in trials)
    workers = max(r.workers for r in trials)
    return max(1, min(len(trials), limit or len(trials), capacity.workers_that_fit(cpus, gpus) // workers))


def check_pool(size: int, capacity: Capacity) -> None:
    """Raises ConfigError when `size` actors of one CPU each do not fit."""
    if size > capacity.free_cpus + 1e-9:
        raise ConfigError(f"--parallel {size} needs {size} cpus, but {capacity.where} has {capacity.free_cpus:g}")
