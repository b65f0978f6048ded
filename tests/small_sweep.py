"""A sweep of a teacher and two students that is done in this process, in a second or two, and what MLflow has of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli_run import CD, EDM, write
from mlflow.tracking import MlflowClient

from cmray.cluster.observer import Observer
from cmray.cluster.plain import PlainSweep
from cmray.cluster.sweep import Outcome
from cmray.config.plan import plan_experiment
from cmray.tracking.make import make_tracker


class Watcher(Observer):
    """Keeps what a sweep says; `ended` is called when a trial has ended."""

    def __init__(self, ended: Callable[[int], None] = lambda _: None):
        self.lines: list[str] = []
        self._ended, self._count = ended, 0

    def trial_ended(self, trial: Any, error: str | None) -> None:
        assert error is None, error
        self._count += 1
        self._ended(self._count)

    def warn(self, text: str) -> None:
        self.lines.append(text)


def study_file(folder: Path, name: str = "study", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "teacher.yaml", EDM)
    fields: dict[str, Any] = {
        "description": "What it is about",
        "teacher": {"experiment": "teacher.yaml"},
        "panels": {"N": {"grid": {"objective.num_sigmas": [5, 9]}}},
        "evaluate": {"num_samples": 256, "nfe": [1, 2], "teacher_nfe": [1, 3], "times": {2: [80, 0.8]}},
        "search": {"nfe": [2], "num_samples": 128, "trials": "best"},
    }
    return write(folder / f"{name}.yaml", CD, **{**fields, **changes})


def sweep(file: Path, storage: Path, uri: str | None, watcher: Watcher) -> Outcome:
    """`cmray sweep` without Ray; its warnings go to the watcher."""
    plan = plan_experiment(file, [], storage)
    work = PlainSweep(plan, storage, None, make_tracker(uri, storage, watcher.warn), watcher)
    work.check()
    return work.run_in_session()


def runs_of(uri: str, name: str) -> dict[str, dict[str, Any]]:
    """All that MLflow holds of an experiment's runs, by their names; two runs of one name are an error."""
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found: dict[str, dict[str, Any]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        run_id = run.info.run_id
        history = {k: [(m.step, m.value) for m in client.get_metric_history(run_id, k)] for k in run.data.metrics}

        def artifacts(path: str = "", run_id: str = run_id) -> list[str]:
            listed = client.list_artifacts(run_id, path)
            return [f for a in listed for f in (artifacts(a.path) if a.is_dir else [a.path])]

        assert run.info.run_name not in found, f"two runs are called {run.info.run_name}"
        found[str(run.info.run_name)] = {
            "id": run_id, "status": run.info.status, "tags": run.data.tags, "params": run.data.params,
            "history": history, "artifacts": sorted(artifacts()), "ended": run.info.end_time,
            "datasets": [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs],
        }  # fmt: skip
    return found
