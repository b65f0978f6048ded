"""Processes that have imported what trials need by the time that Tune or Ray Train asks Ray for one."""

from __future__ import annotations

import importlib


def warm_up(count: int) -> None:
    """Starts `count` processes of a Ray on this machine and returns at once. Ray gives an actor one that is idle.

    They import while the driver prepares the data: three seconds of a core each that the first trials do not wait for.
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=0)(_imported)
    for _ in range(count):
        task.remote()


def _imported() -> None:
    for name in ("cmray.cluster.tune", "cmray.cluster.reader"):
        importlib.import_module(name)
