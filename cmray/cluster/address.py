"""What an address of a Ray cluster means, and who may use which."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmray.core.errors import CmrayError

#: where a head's job server listens, as seen from the head itself or through `ssh -L 8265:127.0.0.1:8265`
JOB_SERVER = "http://127.0.0.1:8265"
_LAST_PORT = 65_535
#: where Ray notes the address of what was started last on a machine, which auto means
_LAST_STARTED = Path("/tmp/ray/ray_current_cluster")
#: what a stranger does: asks the cluster for its keys
_STRANGER = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=None, timeout=10)
"""


class ClusterError(CmrayError):
    """Ray cannot be started or reached."""


def ray_address(address: str | None) -> str | None:
    """--address, else RAY_ADDRESS; None (or "local") means Ray on this machine."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def is_job_server(address: str | None) -> bool:
    """Whether this is the address of a head's job server, http(s)://HOST:8265, where a sweep is submitted."""
    return address is not None and address.startswith(("http://", "https://"))


def job_server(address: str | None) -> str:
    """--address, else RAY_API_SERVER_ADDRESS, else an http RAY_ADDRESS, else port 8265 of this machine.

    Raises:
        ClusterError: it is no URL, or nothing listens there.
    """
    usual = os.environ.get("RAY_ADDRESS")
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or (usual if is_job_server(usual) else None) or "auto"
    url = JOB_SERVER if given in ("auto", "local") else given.rstrip("/")
    found = re.fullmatch(r"https?://(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\s:/\[\]@]+))(?::(?P<port>\d{1,5}))?", url)
    if found is None or int(found["port"] or 0) > _LAST_PORT:
        raise ClusterError(f"'{given}' is no address of a cluster's job server; write http://HOST:8265")
    port = int(found["port"] or (443 if url.startswith("https") else 80))
    try:
        socket.create_connection((found["v6"] or found["host"], port), timeout=5).close()
    except (OSError, UnicodeError) as error:  # a host with an empty label cannot be asked for
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(
            f"no job server answers at {url}: {reason}; it listens on port 8265 of the cluster's head, "
            f"to be reached by `ray dashboard CLUSTER.yaml` or `ssh -L 8265:127.0.0.1:8265 HEAD`"
        ) from None
    return url


def check_reachable(address: str) -> None:
    """Raises ClusterError unless a driver may join at `address` from here; Ray itself would try for minutes."""
    if address == "auto":  # Ray's to resolve
        return
    if is_job_server(address):
        raise ClusterError(
            f"{address} takes whole sweeps as jobs (`cmray sweep`, `cmray jobs submit`); "
            f"run this command on a node of the cluster with --address auto"
        )
    if address.startswith("ray://"):
        host = address.removeprefix("ray://").rpartition(":")[0] or "HOST"
        raise ClusterError(
            f"{address}: Ray Client cannot carry a run, whose driver reads the trials' files on the cluster; "
            f"give --address http://{host}:8265 to `cmray sweep`, which then runs as a job there"
        )
    if "://" in address:  # of a service that Ray knows
        return
    found = re.fullmatch(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d{1,5})", address)
    if found is None or int(found["port"]) > _LAST_PORT:
        raise ClusterError(
            f"'{address}' is no address of a Ray cluster; write http://HOST:8265, HOST:6379 or auto on a node of it, "
            f"or local"
        )
    host = found["v6"] or found["host"]
    try:
        socket.create_connection((host, int(found["port"])), timeout=5).close()
    except (OSError, UnicodeError) as error:  # a host with an empty label cannot be asked for
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(f"no Ray cluster answers at {address}: {reason}") from None
    if not is_node():
        raise ClusterError(
            f"this machine is no node of the cluster at {address}; run the command on one, or give "
            f"--address http://{host}:8265 to `cmray sweep`, which then runs as a job there"
        )


def is_node(processes: Path = Path("/proc")) -> bool:
    """Whether a raylet, the process that makes a machine a node, runs here. True where that cannot be seen."""
    if not processes.is_dir():  # not Linux
        return True
    for file in processes.glob("[0-9]*/cmdline"):
        try:
            program = file.read_bytes().split(b"\0", 1)[0]
        except OSError:  # it has just ended, or is somebody else's
            continue
        if program.endswith(b"/raylet"):
            return True
    return False


def use_token(address: str | None = None) -> None:
    """Token mode where a token is at hand, and RAY_AUTH_MODE does not say otherwise.

    Ray reads the setting once, when it is imported, so a program that has imported it before decides for itself.

    Args:
        address: HOST:PORT or auto. A cluster that was started without tokens is joined without one: its workers would
            have none to show to this process.
    """
    if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ:
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path("~/.ray/auth_token").expanduser()
    if os.environ.get("RAY_AUTH_TOKEN") or file.is_file():
        asked = _LAST_STARTED.read_text().strip() if address == "auto" and _LAST_STARTED.is_file() else address
        open_to_all = asked is not None and re.fullmatch(r"\S+:\d+", asked) and stranger_is_let_in(asked)
        os.environ["RAY_AUTH_MODE"] = "disabled" if open_to_all else "token"


def stranger_is_let_in(address: str) -> bool:
    """Whether the cluster at HOST:PORT answers somebody without a token. Takes a second, in a process of its own."""
    without = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")}
    words = [sys.executable, "-c", _STRANGER, address]
    try:
        done = subprocess.run(words, env={**without, "RAY_AUTH_MODE": "disabled"}, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """An environment variable for the duration of the block, also for the processes that begin in it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
