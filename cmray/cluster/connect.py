"""Starts Ray on this machine, or joins a running cluster."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cmray.cluster.address import ClusterError as ClusterError
from cmray.cluster.address import check_reachable as check_reachable
from cmray.cluster.address import environment, use_token
from cmray.cluster.address import ray_address as ray_address
from cmray.cluster.plugins import check_plugins, plugins_here, plugins_there
from cmray.cluster.preemption import SWITCH
from cmray.cluster.resources import DATA_CPUS, Capacity
from cmray.core.errors import DataError

#: how long a worker may take to say whether it was started with tokens
TOKEN_SECONDS = 60


def local_capacity() -> Capacity:
    """This machine's cores, and its GPUs where torch sees any."""
    import torch

    return Capacity(cores() + DATA_CPUS, float(torch.cuda.device_count()), "this machine")


def cores() -> int:
    """The cores that this process may use: its affinity, and the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return count


def free_memory() -> float:
    """Bytes that this process may still take: the machine's, and the limit of its container. Infinite if unknown."""
    found = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(1024.0 * int(lines["MemAvailable"].split()[0]))
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        found.append(float(int(limit) - int(used)))
    except (OSError, ValueError, KeyError):  # not Linux, no cgroup v2, or "max"
        pass
    return min(found, default=math.inf)


def check_room(resident_bytes: int, free: float, where: str) -> None:
    """Raises DataError when a resident dataset leaves no room. `where` tells of {} bytes, in words."""
    if resident_bytes * 1.1 > free:
        raise DataError(
            f"resident data takes {resident_bytes / 2**30:.1f} GiB on every node, but "
            f"{where.format(f'{free / 2**30:.1f} GiB')}; set data.feed to mmap or stream"
        )


@contextmanager
def connected(address: str | None, resident_bytes: int = 0) -> Iterator[Capacity]:
    """Ray for the duration of the block; a Ray that was started here is stopped with all its processes.

    Args:
        address: from `ray_address`; not of a job server.
        resident_bytes: what datasets take in the object store of a local Ray.

    Raises:
        ClusterError: nothing answers at the address, or a driver cannot join there from here.
    """
    if address is None:
        keep_others_out()
    else:
        check_reachable(address)
        use_token(address)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        before = signal.getsignal(signal.SIGTERM)
        if address is None:
            capacity = local_capacity()
            check_room(resident_bytes, free_memory(), "this machine has {} of memory free")
            # a dataset is in the store up to twice: Ray Data's blocks, and the copy that trials map
            store = max(128 * 2**20, 2 * resident_bytes + 128 * 2**20)
            # nobody takes this machine away: a process less to start for each run with several workers
            stack.enter_context(environment(SWITCH, os.environ.get(SWITCH, "0")))
            stack.enter_context(plugins_here())
            ray.init(
                address="local",
                num_cpus=int(capacity.cpus),
                include_dashboard=False,
                object_store_memory=store,
                **quiet,
            )
        else:
            try:
                ray.init(address=address, runtime_env=plugins_there(), **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ClusterError(_why_not(address, error)) from None
            _check_tokens(address)
            check_plugins(address)
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            store = min((have.get("object_store_memory", 0.0) for have in alive), default=0.0)
            check_room(resident_bytes, store, "the object store of a node of the cluster has {}")
            nodes = tuple((have.get("CPU", 0.0), have.get("GPU", 0.0)) for have in alive)
            cpus, gpus = (sum(node[i] for node in nodes) for i in (0, 1))
            capacity = Capacity(cpus, gpus, f"the cluster at {address}", nodes)
        _quiet()
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray's own handler prints a stack trace
        yield capacity


def _check_tokens(address: str) -> None:
    """Raises ClusterError where this process wants tokens of workers that have none: Ray Train would fail much later,
    with the words "Missing authorization header" of an actor that died."""
    import ray
    from ray.exceptions import GetTimeoutError

    if os.environ.get("RAY_AUTH_MODE") != "token":
        return
    theirs = ray.remote(num_cpus=0)(_auth_mode)
    try:
        mode = ray.get(theirs.remote(), timeout=TOKEN_SECONDS)
    except GetTimeoutError:  # no node has come yet
        return
    if mode != "token":
        raise ClusterError(
            f"the cluster at {address} was started without tokens, but this process has one (~/.ray/auth_token or "
            f"RAY_AUTH_TOKEN); export RAY_AUTH_MODE=disabled here, or start the cluster with RAY_AUTH_MODE=token"
        )


def _auth_mode() -> str | None:
    return os.environ.get("RAY_AUTH_MODE")


def _why_not(address: str, error: Exception) -> str:
    """One line about a cluster that could not be joined."""
    two = re.findall(r"was started with: (Ray: \S+ Python: \S+)", " ".join(str(error).split()))
    if len(two) == 2:
        return f"the cluster at {address} runs {two[0]}, but this process {two[1]}; install the same there and here"
    return f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}"


def result_of(reference: Any) -> Any:
    """The result of a task. Raises what the task raised, not Ray's wrapping of it."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None


def keep_others_out() -> None:
    """Makes a token that every process of this machine's Ray needs: Ray listens on all interfaces.

    Ray reads the setting once, when it is imported, so a program that has imported it before decides for itself.
    """
    if "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _quiet() -> None:
    """Ray's libraries log to the console by default; here only errors may, and none of Tune's, which are kept."""
    for name, level in (("ray", "ERROR"), ("ray.data", "ERROR"), ("ray.train", "ERROR"), ("ray.tune", "CRITICAL")):
        logging.getLogger(name).setLevel(level)
    import ray._private.worker as worker

    # Ray prints to stdout, which is for results, that a worker died; the trial's errors/ says so, and the log
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None  # there is no public switch
