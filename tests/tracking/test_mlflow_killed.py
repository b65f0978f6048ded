"""A training that is killed twice, with MLflow's SQLite store beside it, leaves one run with each step once."""

from __future__ import annotations

import pytest
from cli_run import CT, Running, good, write
from small_sweep import runs_of

from cmray.tracking.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STEPS = 1500


def test_killed_twice_it_is_one_run_with_each_step_once(tmp_path):
    long = {"train": {"steps": STEPS, "batch_size": 256, "checkpoint_every": 100, "log_every": 10}}
    file = write(tmp_path / "study.yaml", CT, long, curve={"every": 500, "num_samples": 64})
    storage = tmp_path / "storage"
    for step in (300, 900):

        def reached(step: int = step) -> bool:
            events = [e for path in storage.glob("study/*/events.jsonl") for e in read_events(path)]
            return bool(events) and events[-1].step >= step and (storage / "mlflow.db").is_file()

        with Running(tmp_path / f"killed {step}", "train", file, "--storage", storage) as running:
            running.until(reached, f"step {step}")
            running.process.kill()
            assert running.ended(30).code == -9
    with Running(tmp_path / "last", "train", file, "--storage", storage) as running:
        good(running.ended())
    (events,) = storage.glob("study/*/events.jsonl")
    logged = {e.step: e.metrics["loss"] for e in read_events(events) if e.kind == "train"}
    runs = runs_of(f"sqlite:///{storage}/mlflow.db", "study")
    (child,) = [r for r in runs.values() if r["tags"]["cmray.role"] != "sweep"]
    assert len(runs) == 2
    assert {r["status"] for r in runs.values()} == {"FINISHED"}
    assert sorted(child["history"]["loss"]) == sorted(logged.items())
    assert list(logged) == list(range(10, STEPS + 1, 10))
    assert len(child["history"]["cost/train_seconds"]) == 1
