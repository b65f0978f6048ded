"""`cmray evaluate` and `cmray search` leave what they find in the model's MLflow run, that of its sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_run import CT, good, here, write

from cmray.cluster.mirror import _named
from cmray.core.locks import locked
from cmray.tracking.records import Evaluation, Provenance


def evaluation(value: float, time: float, **changes) -> Evaluation:
    base = {
        "metric": "fd/digits", "extractor": "digits", "extractor_sha256": "e", "reference_sha256": "r",
        "dataset": "digits", "split": "train", "reference_n": 1797, "n": 512, "seed_first": 0, "seed_block": 256,
        "sampler": "one-step", "nfe": 1, "times": [80.0], "weights": "ema 0.9", "weights_sha256": "w",
        "searched": False,
    }  # fmt: skip
    return Evaluation(key=f"k{time}", value=value, provenance=Provenance(**{**base, **changes}), seconds=1.0, time=time)


def test_one_name_is_one_protocol():
    plain, again = evaluation(2.0, 1.0), evaluation(1.8, 3.0, weights="student")
    many, searched = evaluation(1.5, 2.0, n=50_000), evaluation(1.2, 4.0, nfe=2, searched=True)
    found = dict(_named([again, searched, many, plain], 512))
    assert {name: e.value for name, e in found.items()} == {
        "final/fd/digits@1": 2.0, "final/fd/digits@1/n_50000": 1.5, f"final/fd/digits@1/{again.key}": 1.8,
        "final/fd/digits@2/searched": 1.2,
    }  # fmt: skip
    assert [name for name, _ in _named([plain], None)] == ["final/fd/digits@1/n_512"]


def runs(storage: Path) -> list[dict]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    found = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            files = [f.path for f in client.list_artifacts(run.info.run_id, "searches")]
            found.append(
                {
                    "id": run.info.run_id, "experiment": experiment.name, "status": run.info.status,
                    "role": run.data.tags["cmray.role"], "parent": run.data.tags.get("mlflow.parentRunId"),
                    "metrics": {
                        k: [m.value for m in client.get_metric_history(run.info.run_id, k)]
                        for k in run.data.metrics if k.startswith("final/")
                    },
                    "searches": sorted(files),
                }
            )  # fmt: skip
    return sorted(found, key=lambda run: run["role"])


@pytest.mark.slow
def test_results_of_commands_belong_to_the_run_of_the_trial(tmp_path):
    storage, file = tmp_path / "storage", write(tmp_path / "one.yaml", CT)
    trial = good(here("train", file, "--storage", storage, "--json")).json["trial"]
    before = runs(storage)
    assert [run["role"] for run in before] == ["sweep", "trial"]
    small = (trial, "--storage", storage, "--num-samples", 64)
    first = good(here("evaluate", *small, "--nfe", "1"))
    assert f"MLflow: cmray ui --storage {storage}\n" in first.out
    good(here("evaluate", *small, "--nfe", "1,2"))
    (told,) = good(here("search", *small, "--num-sigmas", 5, "--json")).json
    good(here("search", *small, "--num-sigmas", 5))
    after = runs(storage)
    assert [(r["id"], r["status"], r["parent"]) for r in after] == [(r["id"], r["status"], r["parent"]) for r in before]
    (own,) = (r for r in after if r["role"] == "trial")
    names = sorted(own["metrics"])
    assert {n.partition("/n_")[0].partition("/t_")[0] for n in names} == {
        "final/fd/digits/nfe_1", "final/fd/digits/nfe_2/searched", "final/fd/digits/nfe_2"
    }  # fmt: skip
    assert len(names) == 3
    assert all(len(values) == 1 for values in own["metrics"].values()), "nothing twice"
    assert own["metrics"]["final/fd/digits/nfe_2/searched/n_64"] == [told["reported"]]
    assert own["searches"] == [f"searches/{told['key']}.json", "searches/points.json", "searches/search.png"]

    # training is done and tells nothing new, so the run is as the commands left it
    good(here("train", file, "--storage", storage))
    assert runs(storage) == after


@pytest.mark.slow
def test_a_run_that_is_missing_is_made_once_and_a_later_sweep_takes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a store that is named keeps its files in ./mlruns
    storage, file = tmp_path / "storage", write(tmp_path / "one.yaml", CT)
    trial = good(here("train", file, "--storage", storage, "--tracking-uri", "none", "--json")).json["trial"]
    small = (trial, "--storage", storage, "--num-samples", 64, "--nfe", "1")
    silent = good(here("evaluate", *small))
    assert "MLflow" not in silent.out
    assert not (storage / "mlflow.db").exists(), "nothing was mirrored before, and nobody asked"
    uri = f"sqlite:///{storage}/mlflow.db"
    good(here("evaluate", *small, "--tracking-uri", uri))
    (made,) = runs(storage)
    assert (made["role"], made["status"], made["parent"], len(made["metrics"])) == ("trial", "FINISHED", None, 1)
    good(here("train", file, "--storage", storage))
    sweep, own = runs(storage)
    assert (own["id"], own["parent"], own["metrics"]) == (made["id"], sweep["id"], made["metrics"])


@pytest.mark.slow
def test_an_experiment_in_use_is_left_to_whoever_uses_it(tmp_path):
    storage, file = tmp_path / "storage", write(tmp_path / "one.yaml", CT)
    trial = good(here("train", file, "--storage", storage, "--json")).json["trial"]
    before = runs(storage)
    with locked([storage / "one"]):
        ran = good(here("evaluate", trial, "--storage", storage, "--num-samples", 64, "--nfe", "1"))
    assert "is in use by process" in ran.err
    assert "goes to MLflow when it ends" in ran.err
    assert "fd/digits" in ran.out
    assert runs(storage) == before
    evaluations = [json.loads(f.read_text()) for f in (storage / trial / "evaluations").glob("*.json")]
    assert len(evaluations) == 1
