"""What MLflow has of a sweep: every record once, tables to compare by, what it cost, and the best sampler."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from small_sweep import Watcher, runs_of, study_file, sweep

from cmray.cluster.best import best_sampler
from cmray.cluster.record_tables import total_cost
from cmray.report.load import load_experiment
from cmray.tracking.mlflow import CONTENT_TAG
from cmray.tracking.records import ExperimentRecord


@dataclass
class Done:
    storage: Path
    file: Path
    runs: dict[str, dict[str, Any]]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.storage}/mlflow.db"

    @property
    def record(self) -> ExperimentRecord:
        return load_experiment(self.storage, "study")

    def table(self, run: str, file: str) -> pd.DataFrame:
        client = MlflowClient(self.uri)
        path = client.download_artifacts(self.runs[run]["id"], file)
        return pd.DataFrame(**json.loads(Path(path).read_text()))


@pytest.fixture(scope="module")
def done(mlflow_storage, tmp_path_factory) -> Done:
    file, watcher = study_file(tmp_path_factory.mktemp("files")), Watcher()
    sweep(file, mlflow_storage, None, watcher)
    assert watcher.lines == []
    made = Done(mlflow_storage, file, {})
    made.runs = runs_of(made.uri, "study")
    return made


def children(done: Done) -> dict[str, dict[str, Any]]:
    return {label: run for label, run in done.runs.items() if run["tags"]["cmray.role"] != "sweep"}


def test_there_is_a_parent_and_a_child_for_each_model(done):
    record = done.record
    assert set(done.runs) == {"study", *(t.label for t in record.trials)}
    assert {r["status"] for r in done.runs.values()} == {"FINISHED"}
    parent = done.runs["study"]
    assert {r["tags"]["mlflow.parentRunId"] for r in children(done).values()} == {parent["id"]}
    for trial in record.trials:
        run = done.runs[trial.label]
        assert run["params"]["net.width"] == "16"
        assert run["tags"]["cmray.git"] == (trial.result.git or "")
        assert run["tags"]["cmray.version.torch"] == trial.result.versions["torch"]
        ((name, digest),) = run["datasets"]
        manifest = json.loads((done.storage / "datasets" / "digits" / "manifest.json").read_text())
        assert (name, digest) == ("digits", manifest["digest"][:32])
        assert {"config.yaml", "evaluations.json", f"samples/{trial.name}.png"} <= set(run["artifacts"])


def test_costs_are_those_of_the_records(done):
    for trial in done.record.trials:
        run = done.runs[trial.label]
        logged = {k.removeprefix("cost/"): v for k, v in run["history"].items() if k.startswith("cost/")}
        expected = {name: [(40, value)] for name, value in trial.cost.items()}
        assert logged == expected
        assert {"train_seconds", "gpu_seconds", "cpu_seconds", "images_seen", "evaluate_seconds"} <= set(expected)
        assert trial.cost["images_seen"] == 40 * 32
        assert "energy_joules" not in expected, "no GPU, no energy"
    parent = {k.removeprefix("cost/"): v[0][1] for k, v in done.runs["study"]["history"].items() if k[:5] == "cost/"}
    assert parent == total_cost(done.record)
    assert parent["images_seen"] == 3 * 40 * 32
    searched = [t for t in done.record.trials if t.searches]
    assert parent["search_images"] == sum(s.nfe_spent or 0 for t in searched for s in t.searches) > 0


def test_a_total_is_left_out_where_a_trial_does_not_tell(done):
    record = done.record
    older = record.trials[0]
    assert older.result is not None
    older.result = older.result.model_copy(update={"cpu_seconds": None, "gpu_seconds": None})
    assert not {"cpu_seconds", "gpu_seconds"} & set(total_cost(record))
    assert total_cost(record)["train_seconds"] == total_cost(done.record)["train_seconds"]


def test_seconds_of_evaluations_add_up_to_no_more_than_passed(done):
    evaluations = sorted((e for t in done.record.trials for e in t.evaluations), key=lambda e: e.time)
    passed = evaluations[-1].time - evaluations[0].time + evaluations[0].seconds
    assert 0 < sum(e.seconds for e in evaluations) <= passed + 0.05
    assert all(e.seconds > 0 for e in evaluations)


def test_tables_of_the_runs_compare_by_measure(done):
    students = [t for t in done.record.trials if t.role == "trial"]
    shown = {t.label: done.table(t.label, "evaluations.json").set_index("measure")["value"] for t in students}
    common = set.intersection(*(set(values.index) for values in shown.values()))
    assert common == {"fd/digits · 1 NFE", "fd/digits · 2 NFE (80, 0.8)"}
    for trial in students:
        assert sorted(shown[trial.label]) == pytest.approx(sorted(e.value for e in trial.evaluations), rel=1e-14)
    tables = {run: json.loads(r["tags"]["mlflow.loggedArtifacts"]) for run, r in done.runs.items()}
    assert {"path": "table.json", "type": "table"} in tables["study"]
    assert all({"path": "evaluations.json", "type": "table"} in tables[t.label] for t in students)


def test_a_search_is_there_with_all_its_points_and_its_picture(done):
    (trial,) = [t for t in done.record.trials if t.searches]
    (search,) = trial.searches
    table = done.table(trial.label, "searches/points.json")
    assert list(table["order"]) == list(range(1, len(search.points) + 1))
    assert list(table["sigma"]) == pytest.approx([p.sigma for p in search.points], rel=1e-14)
    assert list(table["value"]) == pytest.approx([p.value for p in search.points], rel=1e-14)
    (chosen,) = set(table.loc[table["chosen"], "sigma"])
    assert chosen == pytest.approx(search.times[1], rel=1e-14)
    artifacts = done.runs[trial.label]["artifacts"]
    assert "searches/search.png" in artifacts
    assert f"searches/{search.key}.json" in artifacts
    others = [run for label, run in done.runs.items() if label != trial.label]
    assert not [a for run in others for a in run["artifacts"] if a.startswith("searches/")]


def test_the_best_sampler_is_registered_under_the_experiments_name(done):
    found = best_sampler(done.record)
    assert found is not None
    trial, evaluation = found
    students = [t for t in done.record.trials if t.role == "trial"]
    one_step = {t.label: next(e.value for e in t.evaluations if e.provenance.nfe == 1) for t in students}
    assert trial.label == min(one_step, key=lambda label: one_step[label])
    assert evaluation.value == min(e.value for e in trial.evaluations)
    client = MlflowClient(done.uri, done.uri)
    (version,) = client.search_model_versions("name = 'study'")
    assert version.run_id == done.runs[trial.label]["id"]
    assert version.tags["cmray.trial"] == f"study/{trial.name}"
    assert trial.label in version.description
    assert client.get_registered_model("study").aliases == {"best": version.version}
    (logged,) = client.search_logged_models([client.get_experiment_by_name("study").experiment_id])
    assert [m.value for m in logged.metrics] == [evaluation.value]
    assert done.runs["study"]["history"]["best/fd/digits"] == [(0, evaluation.value)]


def test_the_next_sweep_changes_nothing(done):
    client = MlflowClient(done.uri, done.uri)
    before = [(v.version, v.tags[CONTENT_TAG]) for v in client.search_model_versions("name = 'study'")]
    stored = {p: p.stat().st_mtime_ns for p in (done.storage / "mlartifacts").rglob("*")}
    picture = next(done.storage.glob("study/*/searches/search.png")).stat().st_mtime_ns
    watcher = Watcher()
    sweep(done.file, done.storage, None, watcher)
    assert watcher.lines == []
    assert runs_of(done.uri, "study") == done.runs
    assert [(v.version, v.tags[CONTENT_TAG]) for v in client.search_model_versions("name = 'study'")] == before
    assert {p: p.stat().st_mtime_ns for p in (done.storage / "mlartifacts").rglob("*")} == stored
    assert next(done.storage.glob("study/*/searches/search.png")).stat().st_mtime_ns == picture


def test_nothing_is_best_before_something_was_measured(done):
    record = done.record
    for trial in record.trials:
        trial.evaluations = []
    assert best_sampler(record) is None


def test_only_samplers_that_a_request_can_ask_for_are_best(done):
    """Weights other than the served ones, and samplers with options of their own, are left out."""
    record = done.record
    best = best_sampler(record)
    assert best is not None
    trial, evaluation = best
    for changes in ({"weights_sha256": "0" * 64}, {"sampler": "multistep clip_denoised=True"}):
        other = record.model_copy(deep=True)
        (same,) = [t for t in other.trials if t.name == trial.name]
        for e in same.evaluations:
            if e.key == evaluation.key:
                e.provenance = e.provenance.model_copy(update=changes)
        found = best_sampler(other)
        assert found is None or (found[0].name, found[1].key) != (trial.name, evaluation.key)
