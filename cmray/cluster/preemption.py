"""Nodes that are about to be taken away, such as spot machines after their notice: who runs there saves and moves.

Ray calls such a node draining (`ray drain-node`, KubeRay and the autoscaler say so); it starts nothing on it any more.
Each training process looks whether its own node is one of them. That it asks Ray's state for it is what Ray Train's
own watcher does, which tells only Ray Train's workers.
"""

from __future__ import annotations

import functools
import os
import threading

#: seconds between two looks; clouds give notice 30 s (GCP, Azure) or 120 s (AWS) ahead
EVERY = 1.0
#: Ray Train's switch for its watcher turns this one off too; a Ray that cmray starts on one machine needs neither
SWITCH = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


class Watcher:
    """Looks from a thread of its own, so that a head that is slow to answer holds no training up."""

    def __init__(self, node: str):
        self._node = node
        self._leaving = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="cmray-preemption").start()

    def leaving(self) -> bool:
        """Whether this process's node is about to be taken away; True for good once it was."""
        return self._leaving.is_set()

    def _watch(self) -> None:
        while not self._leaving.wait(EVERY):
            try:
                if self._node in draining_nodes():
                    self._leaving.set()
            except Exception:  # the head is away; it, too, may come back
                continue


def draining_nodes() -> dict[str, int]:
    """Ids of the nodes that are about to be taken away -> when, in ms since the epoch; 0 where nobody told."""
    import ray

    return ray._private.state.state.get_draining_nodes() or {}  # type: ignore[attr-defined]


@functools.cache
def _watcher() -> Watcher | None:
    """One for each process: Tune's actors train one trial after the other."""
    import ray

    if os.environ.get(SWITCH, "1").lower() in ("0", "false"):
        return None
    return Watcher(ray.get_runtime_context().get_node_id())


def node_is_leaving() -> bool:
    """Whether the node that this Ray worker runs on is about to be taken away."""
    watcher = _watcher()
    return watcher is not None and watcher.leaving()
