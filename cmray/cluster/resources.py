"""How much fits at once. Trials that start without room for their workers would wait for each other forever."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cmray.config.resources import ResourcesConfig
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
        _keep_for_data(nodes)
        return nodes

    def workers_that_fit(self, cpus: float, gpus: float) -> int:
        """How many workers of this size fit on the nodes, a worker being on one node."""
        return sum(_fit_on(node, cpus, gpus) for node in self.free_nodes())


def _keep_for_data(nodes: Iterable[list[float]]) -> None:
    """Takes Ray Data's CPU from the largest of the nodes [CPUs, GPUs]."""
    largest = max(nodes, key=lambda node: node[0], default=None)
    if largest is not None:
        largest[0] -= DATA_CPUS


def _fit_on(node: Sequence[float], cpus: float, gpus: float) -> int:
    """How many workers of this size fit on a node with so much free."""
    fits = [math.floor(have / need + 1e-9) for have, need in zip(node, (cpus, gpus), strict=True) if need > 0]
    return max(0, min(fits))


class Admission:
    """Which trials may run now. A trial is let in with all of its workers or not at all, so none waits for another.

    An elastic trial is let in with as many of its workers as have room, and are of use, once its least number has.

    Args:
        limit: most trials at once; None for as many as fit.
    """

    def __init__(self, capacity: Capacity, limit: int | None = None):
        self.where = capacity.where
        self._nodes: dict[Hashable, list[float]] = dict(enumerate(capacity.free_nodes()))
        self._held: dict[Hashable, list[float]] = {}
        self._limit = math.inf if limit is None else limit
        self._count = 0

    def update(self, nodes: Mapping[str, tuple[float, float]]) -> None:
        """(CPUs, GPUs) of the nodes that there are now, by their ids. What trials hold of those that are gone is kept
        until they release it."""
        self._nodes = {node: list(have) for node, have in nodes.items()}
        _keep_for_data(self._nodes.values())

    def admit(self, trial: ResourcesConfig) -> list[Hashable] | None:
        """The node of each of its workers, taken until `release`; None when there is no room now."""
        if self._count >= self._limit:
            return None
        chosen = self._places(trial)
        workers = trial.useful_workers(len(chosen))
        if workers is None:
            return None
        self._take(trial, chosen[:workers])
        self._count += 1
        return chosen[:workers]

    def release(self, trial: ResourcesConfig, nodes: Sequence[Hashable]) -> None:
        """Gives back what `admit` took."""
        self._take(trial, nodes, -1)
        self._count -= 1

    def move(self, trial: ResourcesConfig, old: Sequence[Hashable], new: Sequence[Hashable]) -> None:
        """Takes note that workers are on other nodes than `admit` chose: Ray places them where it has room."""
        self._take(trial, old, -1)
        self._take(trial, new)

    def room(self, trial: ResourcesConfig, own: Sequence[Hashable]) -> int:
        """With how many workers a trial that runs on the nodes `own` would be let in again; 0 when with none."""
        self._take(trial, own, -1)
        try:
            return trial.useful_workers(len(self._places(trial))) or 0
        finally:
            self._take(trial, own)

    def _places(self, trial: ResourcesConfig) -> list[Hashable]:
        """Nodes for as many of its workers as have room."""
        need = trial.cpus_per_worker, trial.gpus_per_worker
        fits = {}
        for node, (cpus, gpus) in self._nodes.items():
            held = self._held.get(node, (0.0, 0.0))
            fits[node] = _fit_on((cpus - held[0], gpus - held[1]), *need)
        chosen: list[Hashable] = []
        # the tightest nodes first, so that wide ones stay free for those who need them
        for node in sorted(fits, key=lambda node: fits[node]):
            chosen += [node] * min(fits[node], trial.workers - len(chosen))
        return chosen

    def _take(self, trial: ResourcesConfig, nodes: Sequence[Hashable], sign: int = 1) -> None:
        for node in nodes:
            held = self._held.setdefault(node, [0.0, 0.0])
            held[0] += sign * trial.cpus_per_worker
            held[1] += sign * trial.gpus_per_worker


def hungriest_first(resources: ResourcesConfig) -> tuple[float, float]:
    """A key to sort by: those that are hard to place first, and small ones into what they leave."""
    r = resources
    return (-r.workers * r.gpus_per_worker, -r.workers * r.cpus_per_worker)


def check_fits(resources: ResourcesConfig, capacity: Capacity, trial: str) -> None:
    """Raises ConfigError when one trial alone needs more than there is."""
    least = resources.least_workers
    field = "resources.workers" if resources.min_workers is None else "resources.min_workers"
    for kind, need_each, have in (
        ("cpus", resources.cpus_per_worker, capacity.free_cpus),
        ("gpus", resources.gpus_per_worker, capacity.gpus),
    ):
        need = least * need_each
        if need > have + 1e-9:
            raise ConfigError(
                f"{trial}: {field} {least} x {kind}_per_worker {need_each:g} "
                f"needs {need:g} {kind}, "
                f"but {capacity.where} has {have:g}"
            )
    fits = capacity.workers_that_fit(resources.cpus_per_worker, resources.gpus_per_worker)
    if least > fits:
        raise ConfigError(
            f"{trial}: {field} is {least}, but only {fits} workers of "
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
