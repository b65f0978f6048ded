"""How plug-ins come to Ray's processes: files travel, packages must be installed on every node."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cmray.cluster.address import ClusterError, environment
from cmray.core.plugins import VARIABLE, Plugin, PluginError, announced, used, variable_for_workers

#: set in processes of a job, whose workers take over what the job was submitted with
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: seconds until a node must have said which plug-ins it has
PATIENCE = 120


@contextmanager
def plugins_here() -> Iterator[None]:
    """For the processes of a Ray that starts in this block: they run in other folders, and unpickle by module name."""
    files = [plugin.file for plugin in announced() if plugin.file is not None]
    with ExitStack() as stack:
        if files:
            words = [str(p.file or p.module) for p in announced() if not p.entry_point]
            stack.enter_context(environment(VARIABLE, ",".join(words)))
            before = os.environ.get("PYTHONPATH")
            folders = [*([before] if before else []), *dict.fromkeys(str(file.parent) for file in files)]
            stack.enter_context(environment("PYTHONPATH", os.pathsep.join(folders)))
        yield


def plugins_there() -> dict[str, Any] | None:
    """What a driver asks of the workers of a cluster that it joins, as Ray's runtime_env: the plug-ins it has used."""
    if not used() or IN_A_JOB in os.environ:
        return None
    files = [str(plugin.file) for plugin in used() if plugin.file is not None]
    asked: dict[str, Any] = {"env_vars": {VARIABLE: variable_for_workers(used())}}
    return {**asked, "py_modules": files} if files else asked


def pack_plugins(plugins: Sequence[Plugin], folder: Path) -> dict[str, str]:
    """Copies the files of plug-ins into the working directory of a job; the environment that its processes need."""
    for plugin in plugins:
        if plugin.file is not None:
            shutil.copyfile(plugin.file, folder / plugin.file.name)
    return {VARIABLE: variable_for_workers(plugins)} if plugins else {}


def check_plugins(address: str) -> None:
    """Raises ClusterError when a node cannot import a plug-in that this process has used. Nodes may come later."""
    if not used():
        return
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, modules = ray.remote(num_cpus=0)(_missing), [plugin.module for plugin in used()]
    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append(task.options(scheduling_strategy=there).remote(modules))
    try:
        told = ray.get(asked, timeout=PATIENCE)
    except GetTimeoutError:
        return
    for line in filter(None, told):
        raise ClusterError(f"the cluster at {address} lacks a plug-in: {line}")


def _missing(modules: Sequence[str]) -> str:
    """On a node: what is wrong with these plug-ins there; empty where nothing is."""
    try:
        for plugin in announced():
            if plugin.module in modules:
                plugin.load()
    except PluginError as error:
        return f"{error}" if socket.gethostname() in str(error) else f"{socket.gethostname()}: {error}"
    return ""
