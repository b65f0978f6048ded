"""Runs cmray for tests: in this process where only messages count, else as a process with all that it starts."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from cmray.cli.main import main
from cmray.config.load import merged

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "experiments" / "presets" / "digits.yaml"

for _name in ("CMRAY_STORAGE", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RANK", "WORLD_SIZE"):
    os.environ.pop(_name, None)  # what the person who runs the tests has set must not decide them

#: a run of a fraction of a second, as the fields of an experiment file
TINY: dict[str, Any] = {
    "extends": str(DIGITS),
    "net": {"name": "mlp", "width": 16, "depth": 1},
    "train": {"steps": 40, "batch_size": 32, "optimizer": {"lr": 0.01}, "ema": [0.9], "checkpoint_every": 10},
    "curve": {"every": 10, "num_samples": 64},
}
EDM: dict[str, Any] = {"objective": {"name": "edm"}}
CT: dict[str, Any] = {"objective": {"name": "ct", "num_sigmas": 9, "mu": 0.9}}
CD: dict[str, Any] = {"objective": {"name": "cd", "num_sigmas": 9, "mu": 0.9}}


def write(path: Path, *layers: dict[str, Any], **fields: Any) -> Path:
    """An experiment file: TINY with layers and fields merged over it."""
    values: dict[str, Any] = {"name": path.stem, **TINY}
    for layer in (*layers, fields):
        values = merged(values, layer)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def here(*arguments: object) -> Ran:
    """`cmray ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    code: object = None
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    finally:
        signal.signal(signal.SIGTERM, handler)
        torch.set_num_threads(threads)
    assert isinstance(code, int)
    return Ran(code, out.getvalue(), err.getvalue())


def good(ran: Ran) -> Ran:
    assert ran.code == 0, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
    return ran


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with size and time of change."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size if p.is_file() else 0, p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
    }


def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shell() -> dict[str, str]:
    """The environment of a shell, without the token that a sweep in this process has made for its own Ray."""
    return {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}


class Running:
    """`cmray ARGUMENTS` as a process. Use it in a with block: nothing of it outlives the block."""

    def __init__(self, folder: Path, *arguments: object, **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "stdout.txt", folder / "stderr.txt"
        self.began = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cmray", *map(str, arguments)],
                stdout=out,
                stderr=err,
                cwd=folder,
                env={**shell(), **environment},
                start_new_session=True,  # a process group of its own, as a shell gives it
            )
        self._family = {psutil.Process(self.process.pid)}
        self._sessions: set[str] = set()  # folders of the Ray that it started

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        for process in self.left():
            process.kill()
        self.process.wait(30)

    def ctrl_c(self) -> None:
        """What a terminal does: SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def look(self) -> None:
        """Takes down who belongs to it, as long as they are its children."""
        try:
            new = set(psutil.Process(self.process.pid).children(recursive=True)) - self._family
        except psutil.NoSuchProcess:
            return
        self._family |= new
        for process in new:
            self._sessions.update(re.findall(r"/[^\s=]*/session_[\d_-]+", _command(process)))

    def left(self) -> list[psutil.Process]:
        """Those of it that are alive, orphans included."""
        alive = {p for p in self._family if _alive(p)}
        if self._sessions:
            for process in psutil.process_iter():
                if any(session in _command(process) for session in self._sessions):
                    alive.add(process)
        return sorted(alive, key=lambda p: p.pid)

    def named(self, part: str) -> list[psutil.Process]:
        """Those whose command line holds `part`."""
        self.look()
        return [p for p in self.left() if part in _command(p)]

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 300) -> Any:
        """Waits for a true value while the process runs."""
        end = time.monotonic() + timeout
        while True:
            self.look()
            value = condition()
            if value:
                return value
            assert self.process.poll() is None, f"it ended before {what}\n{self.text()}"
            assert time.monotonic() < end, f"no sign of {what} in {timeout} s\n{self.text()}"
            time.sleep(0.1)

    def gone(self, within: float) -> None:
        """Asserts that nothing of it is left after `within` seconds."""
        end = time.monotonic() + within
        while left := self.left():
            shown = [(p.pid, _command(p)[:150]) for p in left]
            assert time.monotonic() < end, f"after {within} s there is still {shown}"
            time.sleep(0.2)

    def ended(self, timeout: float = 600) -> Ran:
        end = time.monotonic() + timeout
        while self.process.poll() is None:
            self.look()
            assert time.monotonic() < end, f"it did not end in {timeout} s\n{self.text()}"
            time.sleep(0.5)
        return Ran(self.process.returncode, self._out.read_text(), self._err.read_text())

    def text(self) -> str:
        return self._out.read_text() + self._err.read_text()


def apart(folder: Path, *arguments: object, timeout: float = 240, **environment: str) -> Ran:
    """`cmray ARGUMENTS` as a process, to its end."""
    with Running(folder, *arguments, **environment) as running:
        return running.ended(timeout)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def digits(value: float) -> str:
    """Eleven of them: a distance's last bits follow from the threads that numpy has, which machines do not share."""
    return f"{value:.11g}"


def final_table(text: str) -> list[dict[str, str]]:
    """The rows of a report's table.csv that any other sweep of the experiment must give too."""

    def shown(cell: str) -> str:
        try:
            return digits(float(cell))
        except ValueError:
            return cell

    rows = [{name: shown(cell) for name, cell in row.items()} for row in csv.DictReader(text.splitlines())]
    for row in rows:
        assert float(row.pop("minutes")) > 0  # all but the time that it took
    return rows
