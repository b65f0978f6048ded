"""A small sweep from end to end on a real Ray: a DDP teacher, trials in actors, results, MLflow, and again."""

from __future__ import annotations

import csv
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_run import CD, EDM, Ran, Running, write
from mlflow.tracking import MlflowClient

from cmray.tracking.events import read_events

STEPS = list(range(1, 41))


@dataclass
class Study:
    folder: Path
    file: Path
    first: Ran
    seconds: float
    tables: dict[str, bytes]  # by run: what table.csv was afterwards
    runs: list[dict[str, Any]]  # MLflow's after the first sweep

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    def again(self, *more: object) -> Ran:
        with Running(self.folder / "again", "sweep", self.file, "--storage", self.storage, *more) as running:
            ran = running.ended()
            running.gone(20)
        return ran

    def table(self) -> bytes:
        return (self.storage / "study" / "report" / "table.csv").read_bytes()


def runs_of(storage: Path) -> list[dict[str, Any]]:
    """All that MLflow holds of the study, as plain values."""
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    found = []
    for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]):
        history = {
            k: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics
        }

        def artifacts(path: str = "", run_id: str = run.info.run_id) -> list[str]:
            listed = client.list_artifacts(run_id, path)
            return [f for a in listed for f in (artifacts(a.path) if a.is_dir else [a.path])]

        found.append(
            {
                "id": run.info.run_id, "name": run.info.run_name, "status": run.info.status,
                "parent": run.data.tags.get("mlflow.parentRunId"), "role": run.data.tags["cmray.role"],
                "trial": run.data.tags.get("cmray.trial"), "params": run.data.params, "history": history,
                "artifacts": sorted(artifacts()), "datasets": [d.dataset.name for d in run.inputs.dataset_inputs],
            }
        )  # fmt: skip
    return found


def study_file(folder: Path, **panels: Any) -> Path:
    write(folder / "teacher.yaml", EDM, resources={"workers": 2})
    return write(
        folder / "study.yaml",
        CD,
        teacher={"experiment": "teacher.yaml"},
        panels={
            "a": {"grid": {"objective.num_sigmas": [5, 9]}},
            "b": {"grid": {"objective.num_sigmas": [9, 18]}},
            **panels,
        },
        evaluate={"num_samples": 512, "nfe": [1, 2], "teacher_nfe": [1, 3]},
        search={"nfe": [2], "num_samples": 256},
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    file = study_file(folder)
    began = time.monotonic()
    with Running(folder / "first", "sweep", file, "--storage", folder / "storage") as running:
        ran = running.ended()
        running.gone(20)
    made = Study(folder, file, ran, time.monotonic() - began, {}, [])
    assert ran.code == 0, ran.err
    made.tables["first"] = made.table()
    made.runs = runs_of(made.storage)
    return made


def trials(study: Study) -> dict[str, Path]:
    """Folders by objective and N."""
    plan = json.loads((study.storage / "study" / "experiment.json").read_text())
    return {t["label"]: study.storage / t["experiment"] / t["name"] for t in plan["trials"]}


def test_the_screen_tells_first_what_will_be_done_and_last_what_to_do_next(study):
    err = study.first.err
    assert err.startswith("cmray sweep ")
    order = [
        "train 4 of 4 models",
        "Estimated time",
        "Ray on this machine",
        "Preparing digits",
        "Ray Data streams digits",
        "Training teacher",
        "Training trials",
        "Evaluating 4 models",
        "Searching 1 sampling time",
    ]
    places = [err.index(words) for words in order]
    assert places == sorted(places)
    out = study.first.out
    assert "searched times for 2 NFE" in out
    for name in ("curve.png", "samples.png", "table.md"):
        (line,) = [line for line in out.splitlines() if line.endswith(f"/{name}")]
        assert Path(line.split(": ")[1].strip()).is_file()
    assert f"cmray ui --storage {study.storage}" in out
    assert out.strip().splitlines()[-1].strip().startswith("next: cmray sample study/cd-")
    for noise in ("Traceback", "WARNING", "INFO", "DeprecationWarning", "raylet", "pid="):
        assert noise not in err + out


def test_a_trial_of_two_panels_is_trained_once_and_every_step_is_told_once(study):
    folders = list(trials(study).values())
    assert len(folders) == 4
    for folder in folders:
        events = read_events(folder / "events.jsonl")
        assert [e.step for e in events if e.kind == "train"] == STEPS
        assert [e.step for e in events if e.kind == "curve"] == [10, 20, 30, 40]
        result = json.loads((folder / "result.json").read_text())
        assert result["world_size"] == (2 if folder.parent.name == "teacher" else 1)
        assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000040"]
    assert not list((study.storage / "study" / ".ray").glob("*")), "Ray's own files were left"


def test_the_table_has_a_row_per_model_and_the_search_its_own(study):
    rows = list(csv.DictReader((study.storage / "study" / "report" / "table.csv").open()))
    assert len(rows) == 4
    searches = list(study.storage.glob("*/*/searches/*.json"))
    assert len(searches) == 1
    records = [json.loads(f.read_text()) for f in study.storage.glob("*/*/evaluations/*.json")]
    assert len(records) == 4 * 2 + 1
    ways = {tuple(r["provenance"][k] for k in ("seed_first", "n", "reference_sha256", "extractor")) for r in records}
    assert len(ways) == 1, "numbers of one table were made differently"
    one_step = {}
    for file in study.storage.glob("study/*/evaluations/*.json"):
        record = json.loads(file.read_text())
        if record["provenance"]["nfe"] == 1:
            one_step[file.parent.parent] = record["value"]
    assert searches[0].parent.parent == min(one_step, key=lambda f: one_step[f]), "not the best model was searched"


def test_mlflow_has_one_parent_and_a_child_per_trial(study):
    runs = study.runs
    (parent,) = [r for r in runs if r["parent"] is None]
    children = [r for r in runs if r["parent"] == parent["id"]]
    assert len(runs) == 5
    assert len(children) == 4
    assert {r["status"] for r in runs} == {"FINISHED"}
    assert sorted(r["role"] for r in runs) == ["sweep", "teacher", "trial", "trial", "trial"]
    assert {r["trial"] for r in children} == {f"{f.parent.name}/{f.name}" for f in trials(study).values()}
    for name in ("experiment.yaml", "table.json", "curve.png", "samples.png"):
        assert any(a.endswith(name) for a in parent["artifacts"]), (name, parent["artifacts"])
    for child in children:
        assert [step for step, _ in child["history"]["loss"]] == STEPS
        curves = [k for k in child["history"] if k.startswith("fd/digits")]
        assert curves
        assert [step for step, _ in child["history"][curves[0]]] == [10, 20, 30, 40]
        finals = [k for k in child["history"] if k.startswith("final/")]
        assert len(finals) >= 2
        assert child["params"]["net.width"] == "16"
        assert child["datasets"] == ["digits"]
        assert any(a.startswith("samples/") for a in child["artifacts"])
        assert "config.yaml" in child["artifacts"]
    for file in ("searches/search.png", "searches/points.json"):
        assert sum(file in child["artifacts"] for child in children) == 1, "of the model that was searched"


def test_the_numbers_in_mlflow_are_those_of_the_records(study):
    for child in study.runs:
        if child["parent"] is None:
            continue
        records = [json.loads(f.read_text()) for f in (study.storage / child["trial"] / "evaluations").glob("*.json")]
        finals = [values[-1][1] for k, values in child["history"].items() if k.startswith("final/")]
        assert sorted(finals) == sorted(r["value"] for r in records)


def test_a_second_sweep_trains_nothing_and_changes_nothing(study):
    files = [*study.storage.glob("*/*/*.json"), *study.storage.glob("*/*/events.jsonl"),
             *study.storage.glob("*/*/evaluations/*")]  # fmt: skip
    before = [f.stat().st_mtime_ns for f in files]
    began = sum(os.times()[2:4])
    ran = study.again()
    assert sum(os.times()[2:4]) - began < 20, "seconds of a core; how long they take is the machine's"
    assert ran.code == 0
    assert "Everything was done already; nothing was trained or measured." in ran.out
    assert "nothing to train" in ran.err
    assert "Ray" not in ran.err
    assert study.table() == study.tables["first"]
    assert [f.stat().st_mtime_ns for f in files] == before
    assert runs_of(study.storage) == study.runs, "MLflow has something twice"
    told = [line for line in study.first.out.splitlines() if "·" in line]
    assert told == [line for line in ran.out.splitlines() if "·" in line], "another table on the screen"


@pytest.mark.slow
def test_new_panels_train_what_is_new_beside_a_trial_that_fails(study):
    """One trial diverges, one is trained by two DDP workers, one is trained as ever; the rest is kept."""
    kept = {f: f.stat().st_mtime_ns for f in study.storage.glob("*/*/result.json")}
    study_file(
        study.folder,
        more={
            "points": [
                {"train.optimizer.lr": 1e12, "resources.retries": 1},
                {"resources.workers": 2, "seed": 5},
                {"seed": 6},
            ]
        },
    )
    ran = study.again("--json")
    assert ran.code == 1, ran.err
    told = ran.json
    assert (told["trained"], told["failed"]) == (2, 1)
    assert {f: f.stat().st_mtime_ns for f in kept} == kept, "a finished trial was trained again"
    (failed,) = [t for t in told["trials"] if t["status"] == "failed"]
    assert failed["error"].startswith("the loss is ")
    assert "train.optimizer.lr" in failed["error"]
    assert failed["error"].endswith("(attempt 2; all of them in errors/)")
    assert len(list((study.storage / failed["trial"] / "errors").iterdir())) == 2
    assert "failed: the loss is" in ran.err
    assert "Traceback" not in ran.err
    finished = [t for t in told["trials"] if t["status"] == "finished"]
    assert len(finished) == 6
    assert all(len(t["evaluations"]) >= 2 for t in finished)
    sizes = [json.loads(f.read_text())["world_size"] for f in study.storage.glob("*/*/result.json")]
    assert sorted(sizes) == [1, 1, 1, 1, 2, 2]
    for new in set(study.storage.glob("*/*/result.json")) - set(kept):
        assert [e.step for e in read_events(new.parent / "events.jsonl") if e.kind == "train"] == STEPS
    runs = runs_of(study.storage)
    before = {r["id"]: r["history"]["loss"] for r in study.runs if r["parent"]}
    assert {r["id"]: r["history"]["loss"] for r in runs if r["id"] in before} == before
    assert len(runs) == 5 + 3
    (bad,) = [r for r in runs if r["status"] == "FAILED" and r["parent"]]
    assert bad["trial"] == failed["trial"]
    assert "error.txt" in bad["artifacts"]
    assert b"fail" in study.table()
    shown = study.again("--only", "a", "--set", "search=null", "--set", "evaluate=null")
    assert shown.code == 0, "the panel that was asked for has not failed"
    assert "Everything was done already" in shown.out
    assert "Ray" not in shown.err


def test_nothing_of_it_is_left(study):
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert [c for c in commands if str(study.folder) in c] == []
