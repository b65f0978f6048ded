"""A real cluster: `ray up` over SSH onto hosts of the test's own making, a sweep on it from outside, `ray down`.

Where hosts cannot be made, the same sweep runs as a job on several raylets of this machine.
"""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray_hosts
import yaml
from cli_run import CD, EDM, ROOT, Ran, apart, final_table, write
from ray_heads import started
from ray_hosts import KEY, SHARED, Host

from cmray.engine.versions import git_revision

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHIPPED = ROOT / "cluster" / "local.yaml"
#: hosts that train, with one logical CPU each: one is left to Ray Data, the others hold a DDP worker each
HOSTS, WORKERS = 3, 2
STEPS = 300
STORE = "100000000"
#: a lost head is noticed by its workers in seconds, as `ray down` of machines of one's own stops the head alone
HASTE = "RAY_gcs_rpc_server_reconnect_timeout_s=5 OMP_NUM_THREADS=1"


def study_in(folder: Path) -> Path:
    """A teacher with two DDP workers, two students of one worker each."""
    steps: dict[str, Any] = {"train": {"steps": STEPS, "checkpoint_every": 100}, "curve": {"every": 100}}
    write(folder / "teacher.yaml", EDM, steps, resources={"workers": WORKERS})
    return write(
        folder / "study.yaml",
        CD,
        steps,
        teacher={"experiment": "teacher.yaml"},
        panels={"N": {"grid": {"objective.num_sigmas": [5, 9]}}},
        evaluate={"num_samples": 256, "nfe": [1, 2], "teacher_nfe": [1]},
    )


def table(storage: Path) -> list[dict[str, str]]:
    """The final table, all but the time that it took."""
    rows = final_table((storage / "study" / "report" / "table.csv").read_text())
    assert len(rows) == 3
    return rows


def cluster_file(head: Host, workers: list[Host]) -> dict[str, Any]:
    """The shipped file for machines of one's own, at these addresses; what a host has already is not installed."""
    made = yaml.safe_load(SHIPPED.read_text())
    made["cluster_name"] = f"test{secrets.token_hex(4)}"
    made["provider"] |= {"head_ip": head.address, "worker_ips": [w.address for w in workers]}
    made["auth"] = {"ssh_user": "root", "ssh_private_key": KEY}
    made["file_mounts"] = {k: v for k, v in made["file_mounts"].items() if "auth_token" in k}
    assert made["file_mounts"], "the token does not travel"
    for commands in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"):
        made[commands] = []
    for commands, start, more in (
        ("head_start_ray_commands", "ray start --head ", ""),
        ("worker_start_ray_commands", "ray start --address", "--num-cpus=1 "),
    ):
        kept = [line for line in made[commands] if "mlflow server" not in line]  # the study is not tracked
        assert sum(start in line for line in kept) == 1, f"{commands} of {SHIPPED} start no Ray"
        assert all("RAY_AUTH_MODE=token" in line for line in kept)
        begin, rest = "ray start ", f"{more}--object-store-memory={STORE} "
        made[commands] = [line.replace(begin, f"export {HASTE}; {begin}{rest}") for line in kept]
    return made


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Callable[[], list[dict[str, str]]]:
    """What the same study gives on this machine; it is run once, beside whatever the test waits for."""
    folder = tmp_path_factory.mktemp("local")
    ran: list[Ran] = []

    def run() -> None:
        words = ("sweep", study_in(folder), "--storage", folder / "storage", "--tracking-uri", "none")
        ran.append(apart(folder / "desk", *words, timeout=480))

    thread = threading.Thread(target=run)
    thread.start()

    def rows() -> list[dict[str, str]]:
        thread.join()
        assert ran, "the local sweep did not end"
        assert ran[0].code == 0, ran[0].err
        return table(folder / "storage")

    return rows


def watched(hosts: list[Host], stop: threading.Event) -> set[frozenset[str]]:
    """Sets of hosts on which Ray Train's workers were seen at the same time."""
    seen: set[frozenset[str]] = set()
    while not stop.wait(0.5):
        busy = {host.name for host in hosts if any("RayTrainWorker" in command(p) for p in host.processes())}
        if busy:
            seen.add(frozenset(busy))
    return seen


@pytest.mark.skipif(ray_hosts.why_not() is not None, reason=str(ray_hosts.why_not()))
def test_ray_up_a_sweep_from_outside_and_ray_down(tmp_path, local):
    names = ["head", *(f"worker{i}" for i in range(1, HOSTS + 1)), "client"]
    exports = ["export RAY_USAGE_STATS_ENABLED=0 PYTHONDONTWRITEBYTECODE=1 RAY_UP_enable_autoscaler_v2=0"]
    with ray_hosts.made(tmp_path, names, exports) as hosts:
        head, *workers, client = hosts
        home = client.folder / "home"
        (home / ".ray").mkdir(exist_ok=True)
        (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
        (home / "cluster.yaml").write_text(yaml.safe_dump(cluster_file(head, workers)))
        up = client.run("ray", "up", "-y", "--no-config-cache", "cluster.yaml", timeout=180)
        assert up.returncode == 0, up.stdout[-4000:]
        try:
            swept(client, head, workers, home, tmp_path, local)
        finally:
            down = client.run("ray", "down", "-y", "cluster.yaml", timeout=180)
        assert down.returncode == 0, down.stdout[-4000:]
        # it stops the head; a worker's raylet leaves once the head has not answered for a minute
        end = time.monotonic() + 240
        while left := [command(p)[:90] for h in (head, *workers) for p in h.processes() if is_ray(p)]:
            assert time.monotonic() < end, f"after `ray down` there is still {left}"
            time.sleep(0.5)


@pytest.mark.skipif(ray_hosts.why_not() is None, reason="hosts can be made here: `ray up` itself is tested")
def test_without_hosts_the_sweep_runs_on_several_raylets(tmp_path, local):
    on_raylets(tmp_path, local)


def on_raylets(folder: Path, local: Any) -> None:
    with started(folder, cpus=0, others=[1] * HOSTS) as head:
        words = (study_in(folder), "--storage", folder / "store", "--tracking-uri", "none")
        ran = head.cmray("sweep", *words, "--address", head.url)
    assert ran.code == 0, ran.err + ran.out
    assert table(folder / "store") == local()


def swept(client: Host, head: Host, workers: list[Host], home: Path, folder: Path, local: Any) -> None:
    url = "http://127.0.0.1:8265"
    tunnel = shlex.split(f"ssh -i {KEY} -o StrictHostKeyChecking=no -N -L 8265:127.0.0.1:8265 root@{head.address}")
    with process_of(client, tunnel):
        nodes = f"""
import json, sys, urllib.request
token = open('{ray_hosts.HOME}/.ray/auth_token').read()
request = urllib.request.Request('{url}/nodes?view=summary', headers={{'Authorization': 'Bearer ' + token}})
found = json.load(urllib.request.urlopen(request, timeout=10))['data']['summary']
print(sum(n['raylet'].get('state') == 'ALIVE' for n in found))
"""
        end, said = time.monotonic() + 400, ""
        while said != str(1 + len(workers)):
            assert time.monotonic() < end, f"{said} nodes instead of {1 + len(workers)}"
            said = client.run("python", "-c", nodes).stdout.strip().rpartition("\n")[2]
            time.sleep(1)
        outside = {"PYTHONPATH": str(ROOT)}
        study_in(home)
        refused = client.run("cmray", "train", "teacher.yaml", "--address", f"{head.address}:6379", **outside)
        assert refused.returncode == 2
        assert "this machine is no node of the cluster" in refused.stdout
        strange = client.run("cmray", "jobs", "list", "--address", url, RAY_AUTH_MODE="disabled", **outside)
        assert strange.returncode == 2
        assert "wants the token of its cluster" in strange.stdout
        stop, seen = threading.Event(), []
        watcher = threading.Thread(target=lambda: seen.append(watched(workers, stop)))
        watcher.start()
        try:
            words = ("sweep", "study.yaml", "--address", url, "--storage", f"{SHARED}/store", "--tracking-uri", "none")
            ran = client.run("cmray", *words, timeout=480, **outside)
        finally:
            stop.set()
            watcher.join()
        assert ran.returncode == 0, ran.stdout[-6000:]
        assert "has finished after" in ran.stdout
        assert max((len(busy) for busy in seen[0]), default=0) == WORKERS, "the DDP workers were not on two hosts"
        storage = folder / "shared" / "store"
        results = [json.loads(f.read_text()) for f in storage.glob("*/*/result.json")]
        assert sorted(r["world_size"] for r in results) == [1, 1, WORKERS]
        assert {r["git"] for r in results} == {git_revision()}, "other code than the client's"
        assert table(storage) == local()


@contextmanager
def process_of(host: Host, words: list[str]) -> Iterator[None]:
    """A process in a host, for as long as the block lasts."""
    process = subprocess.Popen(host.enter(words), stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait(30)


def is_ray(process: psutil.Process) -> bool:
    words = command(process)
    return "/site-packages/ray/" in words or words.startswith("ray::")


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
