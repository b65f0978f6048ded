"""A real Ray with a job server and a token, on this machine: a head, and nodes beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_run import Ran, Running, apart, closed_port

TOKEN = "a-token-that-only-the-tests-of-jobs-know-0123456789"


@dataclass
class Head:
    url: str
    folder: Path

    def cmray(self, *words: object, token: str = TOKEN, mode: str = "token", **more: str) -> Ran:
        """`cmray WORDS` on a machine that knows the job server."""
        return apart(self.folder / "desk", *words, **self.environment(token, mode), **more)

    def running(self, *words: object) -> Running:
        return Running(self.folder / "desk", *words, **self.environment())

    def environment(self, token: str = TOKEN, mode: str = "token") -> dict[str, str]:
        return {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token, "RAY_API_SERVER_ADDRESS": self.url}

    def listed(self) -> list[dict[str, Any]]:
        ran = self.cmray("jobs", "list", "--json")
        assert ran.code == 0, ran.err
        return ran.json


@contextmanager
def started(folder: Path, cpus: int, others: Sequence[int] = ()) -> Iterator[Head]:
    """A head with so many logical CPUs, and nodes with so many each. Nothing of it outlives the block."""
    pytest.importorskip("opencensus", reason="the job server needs ray[default]")
    own = Path(tempfile.mkdtemp(prefix="cmr", dir="/tmp"))  # short: Ray's sockets lie in it
    port, gcs = closed_port(), closed_port()
    processes: list[subprocess.Popen[bytes]] = []
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip

    def start(cpus: int, *more: str) -> None:
        # Ray goes with the tests, even if these are killed
        bound = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        words = [*bound, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--num-cpus={cpus}",
                 "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={closed_port()}",
                 "--object-store-memory=100000000", "--disable-usage-stats", *more]  # fmt: skip
        with (folder / f"node{len(processes)}.log").open("wb") as log:
            nothing = subprocess.DEVNULL
            processes.append(
                subprocess.Popen(
                    words, env=environment, stdout=log, stderr=log, stdin=nothing, start_new_session=True, cwd=folder
                )
            )

    made = Head(f"http://127.0.0.1:{port}", folder)
    try:
        start(cpus, "--head", f"--port={gcs}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1",
              f"--ray-client-server-port={closed_port()}",
              f"--temp-dir={own}")  # fmt: skip
        request = urllib.request.Request(f"{made.url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(request, timeout=5).read()
                break
            except OSError:
                log = (folder / "node0.log").read_text()
                assert processes[0].poll() is None, log
                assert time.monotonic() < end, f"no job server\n{log}"
                time.sleep(0.3)
        for count in others:
            start(count, f"--address=127.0.0.1:{gcs}")
        yield made
    finally:
        _end(processes, own)


def _end(processes: Sequence[subprocess.Popen[bytes]], own: Path) -> None:
    """Asks the nodes to go, and ends what is left of this Ray and of no other."""
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
    for other in psutil.process_iter():
        try:
            if str(own) in " ".join(other.cmdline()):
                other.kill()
        except psutil.Error:
            continue
    shutil.rmtree(own, ignore_errors=True)
