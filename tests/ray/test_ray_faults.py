"""Whatever is killed at any moment: nothing of it stays, the next sweep goes on, and the weights are the same."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_run import CD, CT, EDM, Ran, Running, closed_port, good, here, write

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.config.plan import Plan, plan_experiment
from cmray.tracking.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STEPS, EVERY = 1500, 100
#: long enough to be hit in the middle, a few seconds a trial
LONG: dict[str, Any] = {
    "train": {"steps": STEPS, "batch_size": 256, "checkpoint_every": EVERY, "log_every": 10},
    "curve": {"every": 500, "num_samples": 64},
}


def study_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "teacher.yaml", EDM, LONG, resources={"workers": 2})
    return write(
        folder / "study.yaml",
        CD,
        LONG,
        teacher={"experiment": "teacher.yaml"},
        panels={"N": {"grid": {"objective.num_sigmas": [5, 9]}}},
        evaluate={"num_samples": 256, "nfe": [1], "teacher_nfe": [1]},
    )


def sweeping(folder: Path) -> Running:
    storage = folder / "storage"
    return Running(folder / "desk", "sweep", study_in(folder), "--storage", storage, "--tracking-uri", "none")


def made(folder: Path) -> dict[str, Any]:
    """All that a finished study must have in common with any other: its table, its weights, every step once."""
    plan = plan_experiment(folder / "study.yaml", [], folder / "storage")
    rows = list(csv.DictReader((plan.folder / "report" / "table.csv").open()))
    assert len(rows) == 3
    for row in rows:
        assert float(row.pop("minutes")) > 0  # all but the time that it took
    found: dict[str, Any] = {"table": rows}
    for trial in plan.all_trials:
        events = read_events(trial.folder / "events.jsonl")
        logged = [e.step for e in events if e.kind == "train"]
        assert logged == list(range(10, STEPS + 1, 10)), f"{trial.name} has steps twice or not at all"
        assert [e.step for e in events if e.kind == "curve"] == [500, 1000, 1500]
        (checkpoint,) = (trial.folder / "checkpoints").iterdir()
        found[trial.name] = {
            "files": read_checkpoint_facts(checkpoint).files,
            "losses": [e.metrics["loss"] for e in events if e.kind == "train"],
            "curve": [e.metrics for e in events if e.kind == "curve"],
        }
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with sweeping(folder) as running:
        ran = running.ended()
    assert ran.code == 0, ran.err
    return made(folder)


def finishes(folder: Path, undisturbed: dict[str, Any], *, resumed: str) -> Ran:
    """Runs the same command again and asserts that it ends as if nothing had happened."""
    with sweeping(folder) as running:
        ran = running.ended()
        running.gone(20)
    assert ran.code == 0, ran.err
    assert resumed in ran.err, "it did not go on from where it was"
    assert made(folder) == undisturbed
    assert not list(folder.glob("storage/*/*/error.txt"))
    return ran


def plan_in(folder: Path) -> Plan:
    return plan_experiment(folder / "study.yaml", [], folder / "storage")


def reached(folder: Path, experiment: str, step: int) -> Callable[[], bool]:
    """Whether a trial of the experiment that is not finished has logged `step`."""

    def look() -> bool:
        for events in (folder / "storage" / experiment).glob("*/events.jsonl"):
            if not (events.parent / "result.json").exists():
                last = read_events(events)[-1:]
                if last and last[0].step >= step:
                    return True
        return False

    return look


def last_saved(folder: Path, experiment: str) -> int:
    """The newest checkpoint of an unfinished trial."""
    steps = [
        read_checkpoint_facts(c).step
        for c in (folder / "storage" / experiment).glob("*/checkpoints/step-*")
        if not (c.parent.parent / "result.json").exists()
    ]
    return max(steps, default=0)


# ---------------------------------------------------------------- the driver


@pytest.mark.parametrize(
    ("stop", "experiment", "code", "within"),
    [
        (signal.SIGINT, "teacher", 130, 20),
        (signal.SIGINT, "study", 130, 20),
        # two small agents of a Ray whose driver is killed try for 60 s, fixed in Ray, to tell it so before they leave
        (signal.SIGKILL, "study", -signal.SIGKILL, 90),
    ],
    ids=["Ctrl-C in DDP", "Ctrl-C in Tune", "SIGKILL"],
)
def test_a_sweep_that_is_stopped_leaves_nothing_and_goes_on(tmp_path, undisturbed, stop, experiment, code, within):
    with sweeping(tmp_path) as running:
        running.until(reached(tmp_path, experiment, 350), f"step 350 of {experiment}")
        assert len(running.left()) > 5, "where is Ray?"
        running.ctrl_c() if stop == signal.SIGINT else running.process.send_signal(stop)
        ran = running.ended(within)
        running.gone(within)
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    if code == 130:
        assert ran.err.strip().endswith("stopped; the same command goes on where this one was")
    saved = last_saved(tmp_path, experiment)
    assert 300 <= saved < STEPS
    finishes(tmp_path, undisturbed, resumed=f"resumes at {saved:,}")


def test_two_interrupts_in_a_row(tmp_path):
    """An impatient user: the second Ctrl-C must not leave what the first one was taking down."""
    with sweeping(tmp_path) as running:
        running.until(reached(tmp_path, "teacher", 100), "step 100")
        running.ctrl_c()
        try:
            running.process.wait(0.3)
        except subprocess.TimeoutExpired:
            running.ctrl_c()
        running.ended(20)
        running.gone(20)


# ---------------------------------------------------------------- workers


def kill_a_worker(running: Running, name: str) -> None:
    """SIGKILL to the busiest process whose command line holds `name`."""
    processes = running.named(name)
    assert processes, f"no {name} among {[' '.join(p.cmdline())[:60] for p in running.left()]}"
    max(processes, key=lambda p: p.cpu_times().user).kill()


@pytest.mark.parametrize(
    ("experiment", "name"), [("teacher", "RayTrainWorker"), ("study", "ImplicitFunc")], ids=["DDP worker", "Tune trial"]
)
def test_a_worker_that_is_killed_is_started_again_by_ray(tmp_path, undisturbed, experiment, name):
    with sweeping(tmp_path) as running:
        running.until(reached(tmp_path, experiment, 350), f"step 350 of {experiment}")
        kill_a_worker(running, name)
        ran = running.ended()
        running.gone(20)
    assert ran.code == 0, ran.err
    assert "failed" not in ran.err
    assert made(tmp_path) == undisturbed


# ---------------------------------------------------------------- MLflow


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
