"""MLflow's server is away for the whole sweep, or for 20 seconds of it: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_run import CT, Running, closed_port, good, here, write
from survival import LOG, reached

from cmray.tracking.events import read_events

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tracking"))
from mlflow_servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def runs_of(uri: str) -> list[dict[str, Any]]:
    """Asked in a process of its own, as MLflow keeps stores and settings of a process for good."""
    code = (
        "import json, sys\nfrom mlflow.tracking import MlflowClient\nc = MlflowClient(sys.argv[1])\n"
        "e = c.get_experiment_by_name('study')\n"
        "print(json.dumps([{'parent': r.data.tags.get('mlflow.parentRunId'), 'status': r.info.status,"
        " 'loss': [m.step for m in c.get_metric_history(r.info.run_id, 'loss')], 'keys': sorted(r.data.metrics)}"
        " for r in c.search_runs([e.experiment_id])]))"
    )
    ran = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def test_a_sweep_without_its_mlflow_server_finishes_and_the_next_one_sends_everything(tmp_path):
    file = write(
        tmp_path / "study.yaml",
        CT,
        panels={"N": {"grid": {"objective.num_sigmas": [5, 9]}}},
        evaluate={"num_samples": 256, "nfe": [1]},
    )
    storage, away = tmp_path / "storage", f"http://127.0.0.1:{closed_port()}"
    with Running(tmp_path / "desk", "sweep", file, "--storage", storage, "--tracking-uri", away) as running:
        ran = running.ended()
    assert ran.code == 0, ran.err
    assert f"{away} is away; the sweep goes on" in " ".join(ran.err.split())
    assert "updates were not sent; the same `cmray sweep` sends them" in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert (storage / "study" / "report" / "table.csv").is_file()
    uri = f"sqlite:///{tmp_path}/later.db"
    again = good(here("sweep", file, "--storage", storage, "--tracking-uri", uri))
    assert "Everything was done already" in again.out
    assert "warning" not in again.err
    runs = runs_of(uri)
    children = [r for r in runs if r["parent"]]
    assert len(runs) == 3
    assert len(children) == 2
    for child in children:
        assert child["loss"] == list(range(1, 41))
        assert any(k.startswith("final/fd/digits") for k in child["keys"])
        assert child["status"] == "FINISHED"


def test_a_server_that_is_killed_and_away_for_20_seconds_of_a_run_has_every_step_once(tmp_path):
    steps = 5000  # half a minute
    long = {"train": {"steps": steps, "batch_size": 256, "checkpoint_every": 500, "log_every": LOG}}
    file = write(tmp_path / "study.yaml", CT, long, curve={"every": 1000, "num_samples": 64})
    storage, kept = tmp_path / "storage", tmp_path / "mlflow"
    kept.mkdir()
    where = ("--backend-store-uri", f"sqlite:///{kept}/mlflow.db", "--artifacts-destination", kept / "artifacts")
    with Server(kept, "server", *where) as server:
        arguments = ("train", file, "--storage", storage, "--tracking-uri", server.url)
        with Running(tmp_path / "desk", *arguments) as running:
            running.until(reached(tmp_path, "study", 300), "step 300")
            server.kill()
            time.sleep(20)
            server.start()
            ran = good(running.ended())
        if "updates were not sent" in " ".join(ran.err.split()):  # it was away to the very end
            good(here(*arguments))
        assert "is away" in ran.err
        assert "Traceback" not in ran.err
        runs = runs_of(server.url)
    (events,) = storage.glob("study/*/events.jsonl")
    logged = [e.step for e in read_events(events) if e.kind == "train"]
    assert logged == list(range(LOG, steps + 1, LOG))
    assert [r["status"] for r in runs] == ["FINISHED", "FINISHED"]
    (child,) = [r for r in runs if r["parent"]]
    assert child["loss"] == logged
