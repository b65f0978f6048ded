"""Real servers for tests: MLflow's, and PostgreSQL as an ordinary user. What they start ends with their block."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A command of MLflow that answers at `url`; it can be killed and started again on the same port."""

    def __init__(self, folder: Path, *arguments: object, environment: dict[str, str] | None = None):
        self.port, self.log = free_port(), folder / "server.log"
        folder.mkdir(parents=True, exist_ok=True)
        port = ("--host", "127.0.0.1", "--port", self.port)
        self.command = [sys.executable, "-m", "mlflow", *map(str, (*arguments, *port))]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # `mlflow models serve` looks for uvicorn on PATH, as in an activated environment
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self.environment = {**os.environ, "PATH": path, **quiet, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, path: str = "/health", within: float = 120) -> None:
        """Starts it and waits for its first answer."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + within
        while time.monotonic() < end:
            assert self._process.poll() is None, self.log.read_text()
            try:
                if urllib.request.urlopen(self.url + path, timeout=2).status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"no answer in {within} s\n{self.log.read_text()}")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _postgres_folder() -> Path | None:
    """Where postgres and initdb lie: on PATH, or where Debian's package has them."""
    found = shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True)
    return next((p for p in places if (p / "postgres").is_file() and (p / "initdb").is_file()), None)


@contextmanager
def postgres() -> Iterator[str]:
    """A fresh PostgreSQL on a free port of this machine alone; gives its URI. Skips where it is not installed."""
    programs = _postgres_folder()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed (pip install psycopg2-binary)")
    as_user: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="cmray-postgres-"))  # not below pytest's, which other users cannot enter
    try:
        if os.geteuid() == 0:  # it refuses to run as root
            user = next((u for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody")), None)
            if user is None or shutil.which("setpriv") is None:
                pytest.skip("PostgreSQL does not run as root, and there is no other user to run it as")
            os.chown(folder, user.pw_uid, user.pw_gid)
            as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

        def run(*command: object) -> None:
            done = subprocess.run(
                [*as_user, *map(str, command)], cwd=folder, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stdout + done.stderr

        password, port = secrets.token_hex(8), free_port()
        (folder / "password").write_text(password)
        (folder / "password").chmod(0o644)
        data = folder / "data"
        run(
            programs / "initdb", "-D", data, "-U", "cmray", "-A", "scram-sha-256", "--pwfile", folder / "password",
            "--no-sync", "-E", "UTF8", "--locale=C",
        )  # fmt: skip
        options: Sequence[object] = ("-c", "listen_addresses=127.0.0.1", "-p", port, "-k", folder, "-c", "fsync=off")
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [*as_user, str(programs / "postgres"), "-D", str(data), *map(str, options)],
                cwd=folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            _wait(server, port, folder / "log")
            yield f"postgresql+psycopg2://cmray:{password}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0 and "ready to accept connections" in log.read_text():
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text())
