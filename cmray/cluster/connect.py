"""Starts Ray on this machine, or joins a running cluster."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cmray.cluster.resources import DATA_CPUS, Capacity
from cmray.core.errors import CmrayError


class ClusterError(CmrayError):
    """Ray cannot be started or reached."""


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


def ray_address(address: str | None) -> str | None:
    """--address, else RAY_ADDRESS; None (or "local") means Ray on this machine."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def check_reachable(address: str) -> None:
    """Raises ClusterError unless `address` is one and something listens there; Ray itself would try for minutes."""
    if address == "auto" or "://" in address.removeprefix("ray://"):  # Ray's to resolve
        return
    found = re.fullmatch(r"(?:ray://)?(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d{1,5})", address)
    if found is None:
        raise ClusterError(
            f"'{address}' is no address of a Ray cluster; write HOST:PORT, ray://HOST:PORT, auto or local"
        )
    try:
        socket.create_connection((found["v6"] or found["host"], int(found["port"])), timeout=5).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(f"no Ray cluster answers at {address}: {reason}") from None


@contextmanager
def connected(address: str | None, resident_bytes: int = 0) -> Iterator[Capacity]:
    """Ray for the duration of the block; a Ray that was started here is stopped with all its processes.

    Args:
        address: from `ray_address`.
        resident_bytes: what datasets take in the object store of a local Ray.

    Raises:
        ClusterError: nothing answers at the address.
    """
    if address is None:
        keep_others_out()
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        before = signal.getsignal(signal.SIGTERM)
        if address is None:
            capacity = local_capacity()
            # a dataset is in the store up to three times: Ray Data's blocks, the copy that trials map, and some room
            store = max(128 * 2**20, 3 * resident_bytes + 64 * 2**20)
            ray.init(
                address="local",
                num_cpus=int(capacity.cpus),
                include_dashboard=False,
                object_store_memory=store,
                **quiet,
            )
        else:
            check_reachable(address)
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ClusterError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from None
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            nodes = tuple((have.get("CPU", 0.0), have.get("GPU", 0.0)) for have in alive)
            cpus, gpus = (sum(node[i] for node in nodes) for i in (0, 1))
            capacity = Capacity(cpus, gpus, f"the cluster at {address}", nodes)
        _quiet()
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray's own handler prints a stack trace
        yield capacity


def keep_others_out() -> None:
    """Makes a token that every process of this machine's Ray needs: Ray listens on all interfaces.

    Ray reads the setting once, when it is imported, so a program that has imported it before decides for itself.
    """
    if "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _quiet() -> None:
    """Ray's libraries log to the console by default; here only errors may."""
    for name in ("ray", "ray.data", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
