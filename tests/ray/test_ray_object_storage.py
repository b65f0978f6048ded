"""Sweeps whose storage is in an object store: killed, on another machine, on two machines; nothing is lost."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_run import CD, EDM, Running, apart, final_table, good, write
from object_stores import in_s3, s3_serving
from small_sweep import Watcher
from small_sweep import sweep as sweep_here

from cmray.engine.remote_store import Store
from cmray.tracking.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, EVERY = 900, 100
#: long enough to be hit in the middle, a few seconds a trial
LONG: dict[str, Any] = {
    "train": {"steps": STEPS, "batch_size": 256, "checkpoint_every": EVERY, "log_every": 10},
    "curve": {"every": 450, "num_samples": 64},
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_serving() as address:
        yield address


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    return f"{in_s3(server, f'b{uuid.uuid4().hex[:12]}', monkeypatch)}/storage"


def study_in(folder: Path, **teacher: Any) -> Path:
    write(folder / "teacher.yaml", EDM, LONG, **teacher)
    return write(
        folder / "study.yaml",
        CD,
        LONG,
        teacher={"experiment": "teacher.yaml"},
        panels={"N": {"grid": {"objective.num_sigmas": [5, 9]}}},
        evaluate={"num_samples": 256, "nfe": [1], "teacher_nfe": [1]},
        **({"data": teacher["data"]} if "data" in teacher else {}),
    )


def swept(desk: Path, study: Path, url: str, cache: Path, *more: str) -> Running:
    return Running(desk, "sweep", study, "--storage", url, "--tracking-uri", "none", *more, CMRAY_CACHE=str(cache))


def manifests(store: Store, experiment: str) -> dict[str, int]:
    """The steps of whole checkpoints in the store, by the trial's name: the newest of each."""
    found: dict[str, int] = {}
    for name in store.listing(experiment):
        if name.endswith("/meta.json"):
            step = json.loads(store.read(name) or b'{"step": 0}')["step"]
            found[name.split("/")[1]] = max(step, found.get(name.split("/")[1], 0))
    return found


def test_a_sweep_that_is_killed_goes_on_anywhere(tmp_path, url):
    study = study_in(tmp_path)
    store = Store(url, tmp_path / "eye")
    with swept(tmp_path / "a", study, url, tmp_path / "cache a") as running:
        running.until(lambda: any(EVERY <= s < STEPS for s in manifests(store, "study").values()), "a checkpoint", 400)
        for process in running.left():
            process.kill()
    killed = time.time()
    saved = manifests(store, "study")
    with swept(tmp_path / "b", study, url, tmp_path / "cache b") as running:
        ran = good(running.ended(400))
    assert "was held by" not in ran.err  # the machine knows that the process is gone
    plain = sweep_here(study, tmp_path / "local", "none", Watcher())
    report = store.read("study/report/table.csv")
    assert report is not None
    assert final_table(report.decode()) == final_table(plain.files["table.csv"].read_text())
    for name, step in saved.items():
        (tmp_path / "events.jsonl").write_bytes(store.read(f"study/{name}/events.jsonl") or b"")
        events = [e for e in read_events(tmp_path / "events.jsonl") if e.kind == "train"]
        assert [e.step for e in events] == list(range(10, STEPS + 1, 10)), f"{name} has steps twice or not at all"
        assert all((e.time < killed) == (e.step <= step) for e in events), f"{name} did not go on from step {step}"
    left = {n for n in store.listing() if "/checkpoints/" in n and f"step-{STEPS:08d}" not in n}
    assert left == set(), "old checkpoints stay in the store"
    again = good(apart(tmp_path / "c", "sweep", study, "--storage", url, "--tracking-uri", "none", "--json",
                       CMRAY_CACHE=str(tmp_path / "cache c")))  # fmt: skip
    assert (again.json["trained"], again.json["measured"]) == (0, 0)
    assert "Ray " not in again.err


def test_two_machines_share_nothing_but_the_store(tmp_path, url, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a token in the home folder of whoever tests would turn it on
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    study = study_in(tmp_path, resources={"workers": 2, "cpus_per_worker": 2}, data={"feed": "mmap"})
    store = Store(url, tmp_path / "eye")
    common: dict[str, Any] = {"object_store_memory": 150 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**common, "num_cpus": 3, "include_dashboard": False, "env_vars": _cache(tmp_path / "a")},
    )
    try:
        cluster.add_node(**common, num_cpus=2, env_vars=_cache(tmp_path / "b"))
        with swept(tmp_path / "desk", study, url, tmp_path / "driver", "--address", str(cluster.address)) as running:
            running.until(lambda: manifests(store, "teacher"), "a checkpoint of the teacher", 400)
            workers = running.until(lambda: _training(tmp_path / "b"), "a worker on the second machine")
            workers[0].kill()
            good(running.ended(500))
    finally:
        cluster.shutdown()
    rows = final_table((store.read("study/report/table.csv") or b"").decode())
    assert [row["status"] for row in rows] == ["finished"] * 3
    for machine in "ab":
        assert list((tmp_path / machine).rglob("bench/*/*/checkpoints/step-*/student.safetensors")), machine
    assert not list((tmp_path / "driver").rglob("*.safetensors"))
    for name in {n.split("/")[1] for n in store.listing("teacher")}:
        (tmp_path / "events.jsonl").write_bytes(store.read(f"teacher/{name}/events.jsonl") or b"")
        steps = [e.step for e in read_events(tmp_path / "events.jsonl") if e.kind == "train"]
        assert steps == list(range(10, STEPS + 1, 10))


def _cache(folder: Path) -> dict[str, str]:
    return {"CMRAY_CACHE": str(folder)}


def _training(cache: Path) -> list[psutil.Process]:
    """Workers of Ray Train that keep their working copy in `cache`."""
    found = []
    for process in psutil.process_iter():
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()) and process.environ().get("CMRAY_CACHE") == str(cache):
                found.append(process)
        except psutil.Error:
            continue
    return found
