"""Where trials train, on a cluster whose nodes come and go.

One keeper for all trials of a stage: the driver asks it who may start, elastic trials ask it with how many workers to
go on, and training processes tell it on which node Ray has put them. On a single machine with trials of fixed sizes it
is an object in the driver, else an actor on the head node, so that it goes when the cluster goes and not before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cmray.cluster.preemption import draining_nodes
from cmray.cluster.resources import Admission, Capacity
from cmray.config.resources import ResourcesConfig
from cmray.core.errors import CmrayError

#: a bundle that is on the head node and takes nothing that a worker may need: Tune's process of a trial whose workers
#: are Ray Train's must not keep one of them from its node, and must not die with it
ON_HEAD = {"node:__internal_head__": 0.001}

#: seconds in which the cluster is not asked again which nodes it has
FRESH = 1.0

Nodes = dict[str, tuple[float, float]]


def live_nodes() -> Nodes:
    """(CPUs, GPUs) of the nodes that work can be put on, by their ids."""
    leaving = draining_nodes()
    return {
        node["NodeID"]: (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    }


class Places:
    """Who is where.

    Args:
        live: gives the nodes that there are; None where they never change.
    """

    def __init__(self, admission: Admission, live: Callable[[], Nodes] | None = None):
        self._admission, self._live = admission, live
        self._looked = -FRESH
        self._running: dict[str, tuple[ResourcesConfig, list[Hashable]]] = {}
        self._told: dict[str, dict[int, str]] = {}

    def admit(self, name: str, trial: ResourcesConfig) -> bool:
        """Whether a trial may start; then it holds its places until `release`."""
        self._look()
        nodes = self._admission.admit(trial)
        if nodes is None:
            return False
        self._running[name] = trial, nodes
        return True

    def release(self, name: str) -> None:
        """A trial has ended. Nothing, where it was not running."""
        if name in self._running:
            self._admission.release(*self._running.pop(name))
        self._told.pop(name, None)

    def again(self, name: str, trial: ResourcesConfig) -> int | None:
        """Lets a trial in anew, with the workers that have room now, its own places among them. None without room: it
        then holds nothing."""
        self.release(name)
        return len(self._running[name][1]) if self.admit(name, trial) else None

    def room(self, name: str) -> int:
        """With how many workers a running trial would be let in again; 0 for one that does not run."""
        self._look()
        return self._admission.room(*self._running[name]) if name in self._running else 0

    def stands(self, name: str, rank: int, world_size: int, node: str) -> None:
        """Worker `rank` of a trial has started on a node. When all have, the trial's places are where they are."""
        if name not in self._running or self._live is None:
            return
        told = self._told.setdefault(name, {})
        told[rank] = node
        if set(told) == set(range(world_size)):
            trial, old = self._running[name]
            new: list[Hashable] = [told[rank] for rank in range(world_size)]
            self._admission.move(trial, old, new)
            self._running[name] = trial, new
            told.clear()

    def close(self) -> None:
        """The stage is over."""

    def _look(self) -> None:
        if self._live is not None and time.monotonic() - self._looked >= FRESH:
            self._admission.update(self._live())
            self._looked = time.monotonic()


class RemotePlaces(Places):
    """Places in an actor on the head node; it can be handed to any process of the cluster."""

    def __init__(self, capacity: Capacity, limit: int | None):
        actor = ray.remote(num_cpus=0, resources=ON_HEAD)(_Keeper)
        self.actor: Any = actor.remote(capacity, limit)

    def _said(self, method: str, *arguments: Any) -> Any:
        if not ray.is_initialized():  # a thread that goes on after Ctrl-C: Ray would end the process, or start anew
            raise CmrayError("Ray was left")
        return ray.get(getattr(self.actor, method).remote(*arguments))

    def admit(self, name: str, trial: ResourcesConfig) -> bool:
        return self._said("admit", name, trial)

    def release(self, name: str) -> None:
        self._said("release", name)

    def again(self, name: str, trial: ResourcesConfig) -> int | None:
        return self._said("again", name, trial)

    def room(self, name: str) -> int:
        return self._said("room", name)

    def stands(self, name: str, rank: int, world_size: int, node: str) -> None:
        self.actor.stands.remote(name, rank, world_size, node)  # nobody waits for it

    def close(self) -> None:
        if ray.is_initialized():
            ray.kill(self.actor)


class _Keeper(Places):
    def __init__(self, capacity: Capacity, limit: int | None):
        super().__init__(Admission(capacity, limit), live_nodes)


def keep_places(needs: Sequence[ResourcesConfig], capacity: Capacity, limit: int | None) -> Places:
    """A keeper for trials that need so much."""
    if len(capacity.nodes) > 1 or any(need.min_workers is not None for need in needs):
        return RemotePlaces(capacity, limit)
    return Places(Admission(capacity, limit))


def bundle_of(need: ResourcesConfig) -> dict[str, float]:
    """What one worker takes, as Ray writes it."""
    return {"CPU": need.cpus_per_worker, **({"GPU": need.gpus_per_worker} if need.gpus_per_worker else {})}


def is_free(need: ResourcesConfig, workers: int, patience: float) -> bool:
    """Whether Ray has room for so many workers now, or within `patience` seconds.

    A node that has just died is thought alive for some seconds, and other work of the cluster is nobody's we know of.
    """
    group = placement_group([bundle_of(need)] * workers)
    try:
        return group.wait(patience)
    finally:
        remove_placement_group(group)
