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

    def free_nodes(self) -> list[list[float]]:
        """[CPUs, GPUs] that trials may take of each node."""
        nodes = [list(node) for node in self.nodes or ((self.cpus, self.gpus),)]
        max(nodes, key=lambda node: node[0])[0] -= DATA_CPUS
        return nodes

    def workers_that_fit(self, cpus: float, gpus: float) -> int:
        """How many workers of this size fit on the nodes, a worker being on one node."""
        return sum(_fit_on(node, cpus, gpus) for node in self.free_nodes())


def _fit_on(node: Sequence[float], cpus: float, gpus: float) -> int:
    """How many workers of this size fit on a node with so much free."""
    fits = [math.floor(have / need + 1e-9) for have, need in zip(node, (cpus, gpus), strict=True) if need > 0]
    return max(0, min(fits))


class Admission:
    """Which trials may run now. A trial is let in with all of its workers or not at all, so none waits for another.

    Args:
        limit: most trials at once; None for as many as fit.
    """

    def __init__(self, capacity: Capacity, limit: int | None = None):
        self.where = capacity.where
        self._free = capacity.free_nodes()
        self._limit = math.inf if limit is None else limit
        self._count = 0

    def admit(self, trial: ResourcesConfig) -> list[int] | None:
        """The node of each of its workers, taken until `release`; None when there is no room now."""
        if self._count >= self._limit:
            return None
        need = trial.cpus_per_worker, trial.gpus_per_worker
        chosen: list[int] = []
        # the tightest nodes first, so that wide ones stay free for those who need them
        fits = {i: _fit_on(node, *need) for i, node in enumerate(self._free)}
        for i in sorted(fits, key=lambda i: fits[i]):
            chosen += [i] * min(fits[i], trial.workers - len(chosen))
        if len(chosen) < trial.workers:
            return None
        self._move(trial, chosen, -1)
        return chosen

    def release(self, trial: ResourcesConfig, nodes: Sequence[int]) -> None:
        """Gives back what `admit` took."""
        self._move(trial, nodes, 1)

    def _move(self, trial: ResourcesConfig, nodes: Sequence[int], sign: int) -> None:
        for node in nodes:
            self._free[node][0] += sign * trial.cpus_per_worker
            self._free[node][1] += sign * trial.gpus_per_worker
        self._count -= sign


def hungriest_first(resources: ResourcesConfig) -> tuple[float, float]:
    """A key to sort by: those that are hard to place first, and small ones into what they leave."""
    r = resources
    return (-r.workers * r.gpus_per_worker, -r.workers * r.cpus_per_worker)


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
    """How many of the trials can run at once: as many of the smallest as fit, at least 1."""
    admission = Admission(capacity, limit)
    smallest = sorted(trials, key=hungriest_first, reverse=True)
    return max(1, sum(admission.admit(trial) is not None for trial in smallest))


def check_pool(size: int, capacity: Capacity) -> None:
    """Raises ConfigError when `size` actors of one CPU each do not fit."""
    if size > capacity.free_cpus + 1e-9:
        raise ConfigError(f"--parallel {size} needs {size} cpus, but {capacity.where} has {capacity.free_cpus:g}")
