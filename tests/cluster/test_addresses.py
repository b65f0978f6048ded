"""Every form of an address does the right thing, or is refused in one line that names the form that does."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_run import closed_port

from cmray.cluster.address import (
    ClusterError,
    check_reachable,
    is_job_server,
    is_node,
    job_server,
    ray_address,
    use_token,
)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_where_ray_is(monkeypatch):
    assert ray_address(None) is None
    assert ray_address("local") is None
    assert ray_address("a:1") == "a:1"
    monkeypatch.setenv("RAY_ADDRESS", "b:2")
    assert ray_address(None) == "b:2"
    assert ray_address("a:1") == "a:1"
    assert ray_address("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert ray_address(None) is None


@pytest.mark.parametrize("address", ["", "here", "10.0.0.1", "host:port", "host:123456", "a b:1", "host:99999", "[::1"])
def test_what_is_no_address(address):
    with pytest.raises(ClusterError, match=f"^'{re.escape(address)}' is no address of a Ray cluster"):
        check_reachable(address)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".org"])
def test_a_host_whose_name_cannot_be_asked_for_is_one_sentence(host):
    with pytest.raises(ClusterError, match=f"^no Ray cluster answers at {host}:6379: .*label"):
        check_reachable(f"{host}:6379")
    with pytest.raises(ClusterError, match=f"^no job server answers at http://{host}:8265: .*label"):
        job_server(f"http://{host}:8265")


@pytest.mark.parametrize("address", ["auto", "anyscale://somewhere"])
def test_addresses_that_only_ray_understands(address):
    check_reachable(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_cluster_is_joined_on_its_nodes_only(host, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{host}:{server.getsockname()[1]}"
        if not is_node():  # somebody else's Ray may run on this machine
            with pytest.raises(ClusterError, match=rf"no node of the cluster at {address}.*http://{host}:8265"):
                check_reachable(address)
        raylet = subprocess.Popen(["/somewhere/ray/raylet", "60"], executable="/bin/sleep")  # a process of that name
        try:
            deadline = time.monotonic() + 10
            while not is_node() and time.monotonic() < deadline:  # its name shows a moment after it has begun
                time.sleep(0.01)
            check_reachable(address)
        finally:
            raylet.kill()
            raylet.wait()


def test_a_node_is_known_by_its_raylet(tmp_path):
    def process(number: int, *words: str) -> None:
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes("\0".join([*words, ""]).encode())

    process(1, "/sbin/init")
    process(2, "vim", "/x/raylet")
    assert not is_node(tmp_path)
    process(3, "/venv/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=x")
    assert is_node(tmp_path)
    assert is_node(tmp_path / "nothing"), "where processes cannot be seen, Ray decides"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://head:8265", ["cmray jobs submit", "--address auto"]),
        ("ray://head:10001", ["Ray Client", "http://head:8265"]),
    ],
)
def test_forms_for_something_else_are_refused_at_once(address, words):
    with pytest.raises(ClusterError) as caught:
        check_reachable(address)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_jobs_go(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert job_server(url) == job_server(f"{url}/") == url
        monkeypatch.setenv("RAY_ADDRESS", url)
        assert job_server(None) == url
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{closed_port()}")
        with pytest.raises(ClusterError, match="no job server answers"):
            job_server(None)
        assert job_server(url) == url, "what is given counts"
    assert is_job_server(url)
    assert is_job_server("https://head")
    assert not is_job_server("head:6379")
    assert not is_job_server(None)


@pytest.mark.parametrize(
    "address", ["head:8265", "ray://head:10001", "http://", "ftp://a:1", "http://u:p@h:1", "x y", "http://h:99999"]
)
def test_what_is_no_job_server(address):
    with pytest.raises(ClusterError, match="write http://HOST:8265"):
        job_server(address)


def test_a_token_that_is_there_is_used(monkeypatch, tmp_path):
    code = "import os; from cmray.cluster.address import use_token; use_token(); print(os.environ.get('RAY_AUTH_MODE'))"

    def mode(**environment: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ":".join(p for p in sys.path if p),
                 **environment},
        )  # fmt: skip
        return ran.stdout.strip()

    assert mode() == "None"
    assert mode(RAY_AUTH_TOKEN="x") == "token"
    assert mode(RAY_AUTH_TOKEN="x", RAY_AUTH_MODE="disabled") == "disabled"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert mode() == "token"
    assert Path(sys.executable).exists()
    assert use_token is not None
