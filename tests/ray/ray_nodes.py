"""A Ray cluster of several nodes on this machine, each of which can be taken away. Not a test: tests start it.

usage: ray_nodes.py PORT       obeys one JSON object a line and answers with one

The head has no CPUs, as in cluster.yaml, so that nothing trains on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    # a node that does not answer is dead after 3 s, not 15
    RAY_health_check_period_ms="500",
    RAY_health_check_timeout_ms="2000",
    RAY_health_check_failure_threshold="3",
    RAY_health_check_initial_delay_ms="2000",
)

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

STORE = 128 * 2**20


class Nodes:
    def __init__(self, port: int):
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE, "gcs_server_port": port}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        self.before: set[str] = set()

    def add(self, cpus: int) -> int:
        self.nodes.append(self.cluster.add_node(num_cpus=cpus, object_store_memory=STORE))
        return len(self.nodes) - 1

    def processes(self, node: int) -> list[psutil.Process]:
        """The node's raylet and all that it started."""
        found = []
        for kind in self.nodes[node].all_processes.values():
            for info in kind:
                with contextlib.suppress(psutil.NoSuchProcess):  # a node that is drained ends by itself
                    process = psutil.Process(info.process.pid)
                    found += [process, *process.children(recursive=True)]
        return found

    def where(self, name: str) -> list[int]:
        """The nodes that have a process with `name` in its command line."""
        return [i for i in range(len(self.nodes)) if any(name in _command(p) for p in self.processes(i))]

    def kill(self, node: int) -> None:
        """The machine is gone, from one moment to the next."""
        for process in self.processes(node):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def drain(self, node: int, seconds: int) -> None:
        """What a cloud's notice becomes: `ray drain-node`, without the seconds that a command takes to start."""
        client = ray._raylet.GcsClient(address=self.cluster.address)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        until = time.time_ns() // 1_000_000 + 1000 * seconds
        accepted, why_not = client.drain_node(self.nodes[node].node_id, reason, "spot", until)
        assert accepted, why_not

    def left(self) -> list[str]:
        """Actors and placement groups that are not gone, but for those that Ray Data keeps for good."""
        ray.init(address=self.cluster.address, log_to_driver=False)
        try:
            found: list[str] = []
            for _ in range(60):  # a job's end takes a moment to come round
                actors = ray._private.state.actors().values()  # type: ignore[attr-defined]
                groups = ray.util.placement_group_table().values()
                found = [a["ActorClassName"] for a in actors if a["State"] != "DEAD" and not a.get("IsDetached")]
                found += [f"placement group {g['placement_group_id']}" for g in groups if g["state"] != "REMOVED"]
                if not found:
                    break
                time.sleep(0.5)
            return found
        finally:
            ray.shutdown()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def main() -> None:
    nodes = Nodes(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout = sys.stderr  # Ray may print
    answers.write(json.dumps({"address": nodes.cluster.address}) + "\n")
    try:
        for line in sys.stdin:
            order = json.loads(line)
            told = getattr(nodes, order.pop("do"))(**order)
            answers.write(json.dumps(told) + "\n")
    finally:
        nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
