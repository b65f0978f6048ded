"""A Ray cluster of several nodes in a process of its own. Not a test: tests start it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from cli_run import closed_port


class Cluster:
    """`ray_nodes.py` as a process."""

    def __init__(self, folder: Path):
        self._log = (folder / "cluster.txt").open("w")
        script = Path(__file__).with_name("ray_nodes.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(closed_port())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True,
        )  # fmt: skip
        self.address = self._answer()["address"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()
        return json.loads(line)

    def do(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def busy(self, name: str) -> int:
        """The node where a process of that name runs."""
        end = time.monotonic() + 30
        while not (found := self.do("where", name=name)):
            assert time.monotonic() < end, f"{name} runs nowhere"
        return found[0]

    def end(self) -> None:
        family = psutil.Process(self._process.pid).children(recursive=True)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            for process in family:
                if process.is_running():
                    process.kill()
            self._log.close()
