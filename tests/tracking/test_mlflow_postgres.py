"""A sweep against a real MLflow server on PostgreSQL with an artifact root of its own, which dies in the middle."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from mlflow_servers import Server, postgres
from small_sweep import Watcher, runs_of, study_file, sweep

from cmray.report.load import load_experiment
from cmray.tracking.mlflow import CONTENT_TAG
from cmray.tracking.names import metric_name
from cmray.tracking.served import ServedSampler

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def database():
    with postgres() as uri:
        yield uri


def server_on(database: str, folder: Path, *arguments: object) -> Server:
    uri = {"MLFLOW_BACKEND_STORE_URI": database}  # not among the arguments, where everybody sees its password
    return Server(folder, "server", "--workers", "1", *arguments, environment=uri)


def check(storage: Path, name: str, uri: str) -> dict[str, dict[str, Any]]:
    """Every record of the storage folder is in MLflow, once."""
    record, runs = load_experiment(storage, name), runs_of(uri, name)
    assert set(runs) == {name, *(t.label for t in record.trials)}
    assert {r["status"] for r in runs.values()} == {"FINISHED"}
    for trial in record.trials:
        run = runs[trial.label]
        wanted: dict[str, list[tuple[int, float]]] = {}
        for event in trial.events:
            for metric, value in event.metrics.items():
                wanted.setdefault(metric_name(metric), []).append((event.step, value))
        logged = {k: sorted(v) for k, v in run["history"].items() if not k.startswith(("cost/", "final/"))}
        assert logged == {k: sorted(v) for k, v in wanted.items()}, trial.label
        finals = [v for k, points in run["history"].items() if k.startswith("final/") for _, v in points]
        assert sorted(finals) == sorted(e.value for e in trial.evaluations)
        assert {"config.yaml", "evaluations.json", f"samples/{trial.name}.png"} <= set(run["artifacts"])
        assert {f"evaluations/{e.key}.json" for e in trial.evaluations} <= set(run["artifacts"])
    return runs


def served_images(name: str, folder: Path) -> np.ndarray:
    """Images of the registered model, fetched from the server that MLFLOW_TRACKING_URI names."""
    import mlflow.artifacts

    path = mlflow.artifacts.download_artifacts(f"models:/{name}@best", dst_path=str(folder))
    return ServedSampler(Path(path) / "data" / "sampler").predict(pd.DataFrame([{"seed": 3, "count": 2}]))


@pytest.mark.parametrize("way", ["through the server", "directly"])
def test_a_server_that_dies_in_the_middle_of_a_sweep_has_everything_at_the_end(
    database, tmp_path, capsys, monkeypatch, way
):
    root, name = tmp_path / "artifact root", f"study {way.split()[0]}"
    place: tuple[object, ...] = ("--artifacts-destination", root)
    if way == "directly":
        place = ("--no-serve-artifacts", "--default-artifact-root", root.as_uri())
    storage, file = tmp_path / "storage", study_file(tmp_path, name)
    server = server_on(database, tmp_path / "server", *place)
    away: list[float] = []

    def ended(count: int) -> None:
        if count == 1:  # the teacher: two trials and all results are to come
            server.kill()
            away.append(time.monotonic())
        if count == 3:
            time.sleep(max(0.0, 3 - (time.monotonic() - away[0])))
            server.start()

    watcher = Watcher(ended)
    with server:
        sweep(file, storage, server.url, watcher)
        assert len(watcher.lines) == 1
        assert f"{server.url} is away; the sweep goes on" in watcher.lines[0]
        assert capsys.readouterr().out == "", "MLflow printed something where --json writes"
        first = check(storage, name, server.url)
        client = MlflowClient(server.url, server.url)
        (version,) = client.search_model_versions(f"name = '{name}'")
        assert not (storage / "mlflow.db").exists()
        files = {p for p in root.rglob("*") if p.is_file()}
        assert any(p.name == "table.json" for p in files), "artifacts are not in the artifact root"
        assert any(p.name == "MLmodel" for p in files)
        with monkeypatch.context() as patched:
            patched.setenv("MLFLOW_TRACKING_URI", server.url)
            served = served_images(name, tmp_path)

        again = Watcher()
        sweep(file, storage, server.url, again)
        assert again.lines == []
        assert runs_of(server.url, name) == first, "MLflow has something twice"
        (same,) = client.search_model_versions(f"name = '{name}'")
        assert (same.version, same.tags[CONTENT_TAG]) == (version.version, version.tags[CONTENT_TAG])
        assert {p for p in root.rglob("*") if p.is_file()} == files
    trial = next(t for t in load_experiment(storage, name).trials if version.tags["cmray.trial"].endswith(t.name))
    assert served.shape == (2, 8, 8, 1)
    assert trial.role == "trial"
    assert os.listdir(root)


def test_a_server_that_is_away_from_the_first_to_the_last_gets_all_from_the_next_sweep(database, tmp_path):
    storage, file = tmp_path / "storage", study_file(tmp_path, "late")
    server = server_on(database, tmp_path / "server", "--artifacts-destination", tmp_path / "root")
    watcher = Watcher()
    sweep(file, storage, server.url, watcher)
    assert len(watcher.lines) == 2
    assert "is away; the sweep goes on" in watcher.lines[0]
    assert "the same `cmray sweep` sends them when it is back" in watcher.lines[1]
    with server:
        again = Watcher()
        sweep(file, storage, server.url, again)
        assert again.lines == []
        check(storage, "late", server.url)
