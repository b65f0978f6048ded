"""Ray clusters on this machine, of processes of their own: one whose autoscaler adds nodes (raylets) for what waits, as
`ray up` makes it in a cloud, and one with two nodes.

Ray's own helper for the first cannot be used: its wheel lacks a file of it, and it begins by stopping every Ray.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from cli_run import closed_port

MIB = 2**20
HEAD_ID = "f" * 51 + "00000"
#: what the provider of nodes on one machine calls the head, whatever the file says
HEAD_TYPE = "ray.head.default"
RAY = str(Path(sys.executable).with_name("ray"))


def cluster_file(address: str, kinds: dict[str, dict[str, Any]], max_workers: int) -> dict[str, Any]:
    """As the head keeps it: the file of `ray up` with everything filled in."""
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "grows",
        "max_workers": max_workers,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 10,
        "docker": {},
        "auth": {},
        "provider": {
            "type": "external",  # the wheel lacks the defaults of its own name for it, fake_multinode
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "use_node_id_as_ip": True,
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **kinds},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in commands},
    }


@contextmanager
def growing(kinds: dict[str, dict[str, Any]], max_workers: int, v2: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """A head that runs nothing, and up to `max_workers` nodes of these kinds.

    Yields:
        the address, and the environment of who wants to join.
    """
    own = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_enable_autoscaler_v2": str(int(v2)),
    }
    with _head(_token(), own, kinds, max_workers) as (address, environment, _):
        yield address, environment


@contextmanager
def two_nodes(token: bool = True, before: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """A head with one CPU and a node with one.

    Args:
        token: whether who joins needs one.
        before: what a shell does in the second node's own mount namespace before it starts; needs root.

    Yields:
        the address, and the environment of who wants to join.
    """
    joining = _token() if token else {"RAY_AUTH_MODE": "disabled"}
    with _head(joining, {}, {}, 0) as (address, environment, folder):
        words = [RAY, "start", f"--address={address}", "--num-cpus=1", f"--object-store-memory={100 * MIB}", "--block"]
        if before:
            words = ["unshare", "-m", "bash", "-c", f"{before} && exec {shlex.join(words)}"]
        with (folder / "node.txt").open("wb") as log:
            node = subprocess.Popen(
                words, env={**os.environ, **environment}, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
        try:
            _says(node, folder / "node.txt", "Ray runtime started")
            yield address, environment
        finally:
            node.terminate()
            with suppress(subprocess.TimeoutExpired):
                node.wait(20)
            node.kill()
            node.wait(20)


def _token() -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _head(
    joining: dict[str, str], own: dict[str, str], kinds: dict[str, dict[str, Any]], max_workers: int
) -> Iterator[tuple[str, dict[str, str], Path]]:
    """A head with an autoscaler if there are kinds of nodes, else with one CPU."""
    joining = {**joining, "RAY_USAGE_STATS_ENABLED": "0"}
    host, port = socket.gethostbyname(socket.gethostname()), closed_port()
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:  # short: it holds sockets
        folder = Path(name)
        words = [
            RAY, "start", "--head", f"--node-ip-address={host}", f"--port={port}", f"--num-cpus={int(not kinds)}",
            f"--object-store-memory={100 * MIB}", "--include-dashboard=false", f"--temp-dir={folder}", "--block",
        ]  # fmt: skip
        if kinds:
            (folder / "cluster.yaml").write_text(json.dumps(cluster_file(f"{host}:{port}", kinds, max_workers)))
            words.append(f"--autoscaling-config={folder}/cluster.yaml")
        log = folder / "head.txt"
        with log.open("wb") as out:
            head = subprocess.Popen(
                words, env={**os.environ, **joining, **own}, stdout=out, stderr=out, cwd=folder, start_new_session=True
            )
        try:
            _listens(head, host, port, log)
            yield f"{host}:{port}", joining, folder
        except BaseException:
            for file in (log, *folder.glob("session_latest/logs/monitor.*")):  # shown by pytest
                print(f"--- {file.name}\n{file.read_text()[-5000:]}")  # noqa: T201
            raise
        finally:
            _end(head, name)


def _listens(head: subprocess.Popen, host: str, port: int, log: Path, timeout: float = 90) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < end, f"no head in {timeout} s\n{log.read_text()}"
            time.sleep(0.3)


def _says(process: subprocess.Popen, log: Path, text: str, timeout: float = 90) -> None:
    end = time.monotonic() + timeout
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, f"no '{text}' in {timeout} s\n{log.read_text()}"
        time.sleep(0.3)


def _end(head: subprocess.Popen, folder: str) -> None:
    """Nothing stays: the head, and the nodes that its autoscaler started, which its folder's name gives away."""
    head.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        head.wait(20)
    for process in psutil.process_iter():
        try:
            if any(folder in word for word in process.cmdline()):
                process.kill()
        except psutil.Error:
            continue
    head.kill()
    head.wait(20)
