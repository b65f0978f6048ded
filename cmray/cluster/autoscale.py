"""Clusters that grow: what the autoscaler may add, and waiting for the nodes that a stage needs.

Ray's autoscaler adds nodes for what waits, and cmray starts nothing that would wait: a trial is let in when all of its
workers have room. So before a stage the driver asks for that room with placement groups, one for each trial that could
run at once, waits for the nodes and lets go again. Placement groups die with the driver; `request_resources` would
outlive a driver that is killed, and keep its nodes running and paid for.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmray.cluster.connect import ClusterError
from cmray.cluster.observer import Observer
from cmray.cluster.resources import DATA_CPUS, Admission, Capacity, hungriest_first
from cmray.config.run import ResourcesConfig

#: says what an autoscaler may add where it cannot be asked, as in KubeRay: COUNTxCPUS[:GPUS], separated by commas
GROWS_VARIABLE = "CMRAY_GROWS_TO"
#: seconds to wait for room for every trial of a stage, and for more nodes once there is that much
PATIENCE, GRACE = 1800.0, 300.0

HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class NodeType:
    """A kind of node: logical CPUs and GPUs of each, and the most of them that the autoscaler keeps."""

    cpus: float
    gpus: float
    most: int


@dataclass(frozen=True)
class Growth:
    """What an autoscaler may keep running beside the head: nodes of each type, and all together."""

    types: tuple[NodeType, ...]
    workers: int

    def __str__(self) -> str:
        kinds = [f"{t.most} x {t.cpus:g} CPUs" + (f" and {t.gpus:g} GPUs" if t.gpus else "") for t in self.types]
        return f"{', '.join(kinds)}, at most {self.workers} nodes together"


def growth_of(config: dict[str, Any]) -> Growth | None:
    """What a cluster file of `ray up` allows, as its head keeps it; None where nothing can be added."""
    head, kinds = config.get("head_node_type"), config.get("available_node_types") or {}
    workers = int(config.get("max_workers") or 0)
    types = []
    for name, kind in kinds.items():
        have = kind.get("resources") or {}
        most = 0 if name == head else min(int(kind.get("max_workers", workers)), workers)
        if most > 0 and (have.get("CPU") or have.get("GPU")):
            types.append(NodeType(float(have.get("CPU", 0)), float(have.get("GPU", 0)), most))
    return Growth(tuple(types), workers) if types else None


def parse_growth(text: str) -> Growth:
    """Reads CMRAY_GROWS_TO, such as "2x94:8,4x30": two nodes of 94 CPUs and 8 GPUs, four of 30 CPUs."""
    types = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)x(\d+)(?::(\d+))?\s*", part)
        if found is None or int(found[1]) == 0:
            raise ClusterError(f"{GROWS_VARIABLE} is '{text}'; write COUNTxCPUS:GPUS, such as 2x94:8 or 2x94:8,4x30")
        types.append(NodeType(float(found[2]), float(found[3] or 0), int(found[1])))
    return Growth(tuple(types), sum(kind.most for kind in types))


def read_growth(gcs_address: str) -> Growth | None:
    """Runs on the head: the file that this cluster's autoscaler goes by, else CMRAY_GROWS_TO; None without both."""
    import yaml

    files: list[tuple[bool, str]] = []  # (whether it names our cluster, file)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        if any(word.endswith("monitor.py") for word in words[:3]):
            given = [word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")]
            files += [(f"--gcs-address={gcs_address}" in words, name) for name in given]
    named = [name for ours, name in files if ours] or [name for _, name in files if len(files) == 1]
    if named:
        try:
            return growth_of(yaml.safe_load(Path(named[0]).expanduser().read_text()) or {})
        except (OSError, yaml.YAMLError):
            return None
    text = os.environ.get(GROWS_VARIABLE)
    return parse_growth(text) if text else None


def growth() -> Growth | None:
    """What the autoscaler of the connected cluster may keep running; None where there is none."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = next((node for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]), None)
    if head is None:
        return None
    there = NodeAffinitySchedulingStrategy(head["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=1)(read_growth).options(scheduling_strategy=there)
    try:
        return ray.get(task.remote(ray.get_runtime_context().gcs_address), timeout=60)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except RayError:  # a head that runs no tasks says nothing
        return None


def alive(where: str) -> Capacity:
    """What the connected cluster has now."""
    import ray

    have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple((one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in have)
    return Capacity(sum(n[0] for n in nodes), sum(n[1] for n in nodes), where, nodes)


def grown(now: Capacity, may: Growth) -> Capacity:
    """What the cluster has when everything is added that may be: those with most GPUs first."""
    missing = []
    running = Counter(now.nodes)
    for kind in sorted(may.types, key=lambda kind: (-kind.gpus, -kind.cpus)):
        shape = kind.cpus, kind.gpus
        here = min(running[shape], kind.most)
        running[shape] -= here
        missing += [shape] * (kind.most - here)
    nodes = (*now.nodes, *missing[: max(0, may.workers - max(0, len(now.nodes) - 1))])  # one of them is the head
    cpus, gpus = (sum(node[i] for node in nodes) for i in (0, 1))
    return Capacity(cpus, gpus, f"{now.where} at its largest", nodes)


def at_most(now: Capacity, needs: Sequence[ResourcesConfig], limit: int | None = None) -> Capacity:
    """What a joined cluster may come to have; `now` where these trials have room at once, or it does not grow.

    Asks the cluster only when something is lacking.
    """
    if not now.nodes or admitted(now, needs, limit) == min(len(needs), limit or len(needs)):
        return now
    may = growth()
    return now if may is None else grown(now, may)


def evaluator(now: Capacity, on_gpus: bool) -> ResourcesConfig:
    """What one evaluator takes: a GPU where there is one, or may come one and the models are such that it is worth it.

    Args:
        on_gpus: whether the models were trained on GPUs.
    """
    if not now.nodes or (now := alive(now.where)).gpus >= 1 or not on_gpus:
        return ResourcesConfig(gpus_per_worker=float(now.gpus >= 1))
    may = growth()
    return ResourcesConfig(gpus_per_worker=float(may is not None and any(kind.gpus for kind in may.types)))


def admitted(capacity: Capacity, needs: Sequence[ResourcesConfig], limit: int | None = None) -> int:
    """How many of these trials run at once when they come in the order of a sweep."""
    admission = Admission(capacity, limit)
    return sum(admission.admit(need) is not None for need in sorted(needs, key=hungriest_first))


def wait_for_room(
    now: Capacity,
    needs: Sequence[ResourcesConfig],
    limit: int | None,
    observer: Observer,
    patience: float = PATIENCE,
    grace: float = GRACE,
) -> Capacity:
    """Asks the autoscaler for as many of these trials at once as it can make room for, and waits for the nodes.

    Args:
        limit: most trials at once; None for as many as fit.
        observer: told what is waited for and, every second, how many have room; may raise to give up.
        patience: seconds until there must be room for each of the trials alone.
        grace: seconds without a new node after which it goes on with what there is, if each has room alone.

    Returns:
        what the cluster has then.

    Raises:
        ClusterError: no room in time.
    """
    if not now.nodes:  # this machine
        return now
    now = alive(now.where)  # nodes come and go between two stages
    most = at_most(now, needs, limit)
    want = admitted(most, needs, limit)
    if most is now or (want <= admitted(now, needs, limit) and not _lacking(now, needs)):
        return now
    where = now.where
    groups = _ask(needs, most, limit)
    observer.message(f"Asking the cluster for room for {_trials(want)} at once; it has {_nodes(now)}")
    began = changed = time.monotonic()
    try:
        while True:
            then, now = now, alive(where)
            have, lacking = admitted(now, needs, limit), _lacking(now, needs)
            observer.task("Waiting for nodes", min(have, want), want)
            if have >= want and not lacking:
                observer.message(f"There is room for {_trials(want)} now: {_nodes(now)}")
                return now
            clock = time.monotonic()
            changed = clock if now.nodes != then.nodes else changed
            if not lacking and clock - changed > grace:
                observer.message(f"No further nodes came in {grace / 60:.0f} minutes; going on with {_nodes(now)}")
                return now
            if lacking and clock - began > patience:
                need = lacking[0]
                raise ClusterError(
                    f"after {patience / 60:.0f} minutes {where} has no room for {need.workers} workers of "
                    f"{need.cpus_per_worker:g} cpus and {need.gpus_per_worker:g} gpus, which its autoscaler was asked "
                    f"for: it has {_nodes(now)}; `ray status` on the head says what it waits for, such as a quota"
                )
            time.sleep(1.0)
    finally:
        _let_go(groups)


def _lacking(capacity: Capacity, needs: Sequence[ResourcesConfig]) -> list[ResourcesConfig]:
    """Those that have no room even when nothing else runs."""
    return [need for need in needs if not admitted(capacity, [need])]


def _ask(needs: Sequence[ResourcesConfig], most: Capacity, limit: int | None) -> list[Any]:
    """A placement group for each trial that could run at once, and one for what Ray Data needs."""
    from ray.util.placement_group import placement_group

    admission, groups = Admission(most, limit), []
    for need in sorted(needs, key=hungriest_first):
        if admission.admit(need) is not None:
            bundle = {"CPU": need.cpus_per_worker, "GPU": need.gpus_per_worker}
            each = {name: value for name, value in bundle.items() if value > 0}
            groups.append(placement_group([dict(each) for _ in range(need.workers)], strategy="PACK"))
    return [*groups, placement_group([{"CPU": DATA_CPUS}])]


def _let_go(groups: Sequence[Any]) -> None:
    from ray.util.placement_group import remove_placement_group

    for group in groups:
        remove_placement_group(group)


def _trials(count: int) -> str:
    return f"{count} trial{'s' if count != 1 else ''}"


def _nodes(capacity: Capacity) -> str:
    count = len(capacity.nodes)
    return f"{count} node{'s' if count != 1 else ''} with {capacity.cpus:g} CPUs and {capacity.gpus:g} GPUs"
