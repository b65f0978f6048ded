"""`cmray doctor --address`: what is well and what is wrong on the nodes of a real cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cli_run import apart, closed_port, good, here
from growing_cluster import two_nodes

from cmray.cluster.checkup import _clocks, _node
from cmray.cluster.probe import Probe, Seen

slow = [pytest.mark.slow, pytest.mark.timeout(400)]


def seen(**changes: Any) -> Seen:
    well: dict[str, Any] = {
        "host": "h", "versions": Probe.versions(), "nccl": "2.30", "gpus": ("A100",) * 8, "auth_mode": "token",
        "shm": 8.0, "disk": 100.0, "storage": "", "tracking": "", "data": "",
    }  # fmt: skip
    return Seen(**{**well, **changes})


GPU_NODE = {"Resources": {"CPU": 96.0, "GPU": 8.0}}


def test_a_node_with_all_it_needs_is_well():
    found = _node("10.0.0.2", GPU_NODE, seen())
    assert found.ok
    assert "96 CPUs, 8 GPUs (A100)" in found.found
    assert "NCCL 2.30" in found.found


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"versions": {**Probe.versions(), "torch": "2.9.0"}}, "install the same everywhere"),
        ({"gpus": ("A100",) * 7}, "nvidia-smi shows 7 of 8 GPUs"),
        ({"nccl": ""}, "install torch with CUDA"),
        ({"shm": 0.1}, "larger /dev/shm"),
        ({"disk": 0.2}, "free some disk"),
    ],
)
def test_what_a_node_lacks_is_told_with_what_mends_it(changes, mend):
    found = _node("10.0.0.2", GPU_NODE, seen(**changes))
    assert not found.ok
    assert mend in found.mend


def test_a_node_that_gives_no_answer_is_told():
    found = _node("10.0.0.2", GPU_NODE, "No module named 'cmray'")
    assert not found.ok
    assert found.found == "No module named 'cmray'"


def test_clocks_may_differ_by_no_more_than_is_known():
    assert _clocks({"a": (0.3, 0.1), "b": (-2.5, 1.0)}).ok  # 2.5 s measured to within 1 s may be 1.5 s
    bad = _clocks({"a": (0.0, 0.01), "b": (-60.0, 0.01)})
    assert not bad.ok
    assert "b -60.0 s" in bad.found


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Health) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def doctor(folder, address: str, environment: dict[str, str], *more: object) -> tuple[int, dict[str, Any]]:
    storage = folder / "storage"
    words = ("doctor", "--json", "--address", address, "--storage", storage, *more)
    ran = apart(folder / "desk", *words, timeout=180, **environment)
    assert not list(storage.glob(".doctor*"))
    return ran.code, {c["name"]: c for c in ran.json}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    good(here("data", "prepare", "digits", "--out", folder))
    return folder


class TestOnTwoNodes:
    pytestmark = slow

    def test_a_good_cluster_is_well(self, tmp_path, server, digits):
        with two_nodes() as (address, environment):
            _, checks = doctor(tmp_path, address, environment, "--tracking-uri", server, "--data", digits)
        names = [name for name in checks if name.startswith("node ")]
        assert len(names) == 2
        assert names[0].endswith("(head)")
        for name in ("Ray", "token", "storage on every node", "clocks", "MLflow from every node", "data on every node"):
            assert checks[name]["ok"], checks[name]
            if name != "Ray":
                assert "2" in checks[name]["found"] or name == "clocks"
        assert "2 logical CPUs" in checks["Ray"]["found"]
        assert all("Python" in checks[name]["found"] for name in names)

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare for a mount")
    def test_what_is_wrong_is_told_of_the_node_where_it_is(self, tmp_path, digits):
        (tmp_path / "storage").mkdir()
        hide = f"mount -t tmpfs none {tmp_path / 'storage'} && mount -t tmpfs none {digits}"
        probe = subprocess.run(["unshare", "-m", "true"], capture_output=True)
        if probe.returncode:
            pytest.skip("this kernel allows no mount namespaces")
        nowhere = f"http://127.0.0.1:{closed_port()}"
        with two_nodes(token=False, before=hide) as (address, environment):
            code, checks = doctor(tmp_path, address, environment, "--tracking-uri", nowhere, "--data", digits)
        assert code == 1
        bad = {name: c for name, c in checks.items() if not c["ok"]}
        assert set(bad) >= {"token", "storage on every node", "MLflow from every node", "data on every node"}
        assert "#2 does not see what the driver has written" in bad["storage on every node"]["found"]
        assert "#1" not in bad["storage on every node"]["found"]
        assert "RAY_AUTH_MODE is not token" in bad["token"]["found"]
        assert "#2" in bad["data on every node"]["found"]
        assert all(c["mend"] for c in bad.values())
        assert checks["data"]["ok"]

    def test_another_version_of_ray_is_told_in_one_line(self, tmp_path):
        forge = (
            "import json, sys; from ray._raylet import GcsClient; c = GcsClient(address=sys.argv[1]);"
            "k, n = b'CLUSTER_METADATA', b'cluster';"
            "m = json.loads(c.internal_kv_get(k, n)); m['ray_version'] = '2.51.0';"
            "c.internal_kv_put(k, json.dumps(m).encode(), True, n)"
        )
        with two_nodes() as (address, environment):
            done = subprocess.run(
                [sys.executable, "-c", forge, address],
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            code, checks = doctor(tmp_path, address, environment)
        assert code == 1
        assert "runs Ray: 2.51.0 Python: 3." in checks["Ray"]["found"]
        assert "but this process Ray: 2." in checks["Ray"]["found"]
