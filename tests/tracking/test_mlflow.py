"""The tracker over real MLflow stores: SQLite, a closed port, and a server."""

import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from cmray.tracking.base import Tracker
from cmray.tracking.make import make_tracker
from cmray.tracking.mlflow import MlflowStore, MlflowTracker
from cmray.tracking.records import Event


@pytest.fixture(scope="module")
def storage(mlflow_storage) -> Path:
    return mlflow_storage


@pytest.fixture
def tracker(storage, request) -> Tracker:
    return started(storage, request.node.name)


def started(storage: Path, experiment: str, uri: str | None = None) -> MlflowTracker:
    def warn(line: str) -> None:
        raise AssertionError(line)

    tracker = MlflowTracker(uri, storage, warn)
    tracker.start_experiment(experiment, "what it is", {"cmray.file": "fig3.yaml"})
    return tracker


def client(tracker):
    return tracker._store._client()


def curve(step: int, seconds: float, value: float = 3.0) -> Event:
    return Event(kind="curve", step=step, nimg=step, time=seconds, metrics={"fd/digits@1": value})


def train(step: int, seconds: float) -> Event:
    return Event(kind="train", step=step, nimg=step, time=seconds, metrics={"loss": 1 / (1 + step), "lr": 0.1})


def history(tracker, run: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(tracker).get_metric_history(run, name)]


def test_a_run_is_found_again_and_reopened_unless_finished(storage, tracker, request):
    first = tracker.open_run("t-1", "trial", params={"a": {"b": 1}}, tags={"panel": "x"})
    tracker.close_run("t-1", "failed")
    assert client(tracker).get_run(first).info.status == "FAILED"

    again = started(storage, request.node.name)
    assert again.open_run("t-1", "trial", params={"a": {"b": 2}, "c": None}, tags={"panel": "y"}) == first
    run = client(again).get_run(first)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "trial"
    assert run.data.params == {"a.b": "1", "c": "null"}
    assert run.data.tags["panel"] == "y"
    again.close_run("t-1", "finished")
    ended = client(again).get_run(first).info.end_time

    third = started(storage, request.node.name)
    assert third.open_run("t-1", "trial", params={}, tags={}) == first
    third.close_run("t-1", "finished")
    assert client(third).get_run(first).info.status == "FINISHED"
    assert client(third).get_run(first).info.end_time == ended
    assert len(client(third).search_runs([run.info.experiment_id])) == 1


def test_an_experiment_is_made_once_and_restored_when_deleted(storage, tracker, request):
    found = client(tracker).get_experiment_by_name(request.node.name)
    assert found.tags["mlflow.note.content"] == "what it is"
    assert found.artifact_location.startswith((storage / "mlartifacts").as_uri())
    client(tracker).delete_experiment(found.experiment_id)
    again = started(storage, request.node.name)
    assert client(again).get_experiment(found.experiment_id).lifecycle_stage == "active"


@pytest.mark.parametrize("key", ["heun · l2 · N=9", "ann's", "a/b@2 %"])
def test_keys_may_hold_other_characters(storage, tracker, request, key):
    run = tracker.open_run(key, "trial", params={}, tags={})
    assert started(storage, request.node.name).open_run(key, "trial", params={}, tags={}) == run


def test_children_hang_below_their_parent(tracker):
    parent = tracker.open_run("sweep", "sweep", params={}, tags={})
    child = tracker.open_run("trial", "trial", parent_key="sweep", params={}, tags={})
    assert client(tracker).get_run(child).data.tags["mlflow.parentRunId"] == parent


def test_long_unicode_and_many_params_are_taken_twice(tracker):
    params = {f"key{i}": i for i in range(250)}
    params |= {"long": "é" * 10_000, "none": None, "日本 (x)@": "ü\n", "empty": "", "list": [1, None, "a"]}
    for _ in range(2):
        run = tracker.open_run("t", "t", params=params, tags={"a tag (é)": "x" * 9000})
    logged = client(tracker).get_run(run).data.params
    assert len(logged) == 255
    assert logged["none"] == "null"
    assert logged["日本 _x__"] == "ü\n"
    assert len(logged["long"]) == 6000


def test_resumed_events_with_other_times_make_no_double_points(storage, tracker, request):
    run = tracker.open_run("t", "t", params={}, tags={})
    first = [train(step, 10.0 + step) for step in range(40)] + [curve(20, 12.0)]
    tracker.sync_events("t", first)
    tracker.sync_events("t", first)
    tracker.sync_events("t", [train(step, 99.0) for step in range(30, 50)] + [curve(20, 99.0), curve(40, 99.0)])
    again = started(storage, request.node.name)
    assert again.open_run("t", "t", params={}, tags={}) == run
    again.sync_events("t", [train(step, 200.0) for step in range(45, 60)] + [curve(30, 200.0), curve(40, 200.0)])
    assert sorted(step for step, _ in history(again, run, "loss")) == list(range(60))
    assert sorted(history(again, run, "fd/digits/nfe_1")) == [(20, 3.0), (30, 3.0), (40, 3.0)]
    point = client(again).get_metric_history(run, "loss")[0]
    assert (point.step, point.timestamp) == (0, 10_000)


def test_more_points_than_one_call_takes(tracker):
    run = tracker.open_run("t", "t", params={}, tags={})
    tracker.sync_events("t", [train(step, float(step)) for step in range(1000)])
    assert len(history(tracker, run, "lr")) == 1000


def test_values_that_are_not_finite(storage, tracker, request):
    run = tracker.open_run("t", "t", params={}, tags={})
    for tracker_ in (tracker, started(storage, request.node.name)):
        tracker_.open_run("t", "t", params={}, tags={})
        tracker_.sync_events("t", [curve(1, 1.0, math.nan), curve(2, 1.0, math.inf)])
        tracker_.log_metrics("t", {"final": math.nan, "fd/digits@2": 1.5}, 2, 5.0)
    points = history(tracker, run, "fd/digits/nfe_1")
    assert len(points) == 2
    assert math.isnan(dict(points)[1])
    assert len(history(tracker, run, "final")) == 1
    assert history(tracker, run, "fd/digits/nfe_2") == [(2, 1.5)]


def test_files_tables_and_datasets(storage, tracker, request, tmp_path):
    picture = tmp_path / "grid.png"
    picture.write_bytes(b"png")
    for tracker_ in (tracker, started(storage, request.node.name)):
        run = tracker_.open_run("t", "t", params={}, tags={})
        tracker_.log_artifact("t", picture, "samples")
        tracker_.log_table("t", pd.DataFrame({"fd": [1.0, None], "at": [Path("a"), Path("b")]}), "tables/fd.json")
        tracker_.log_text("t", "é", "notes.txt")
        tracker_.log_dict("t", {"a": 1}, "config/run.yaml")
        tracker_.log_dataset("t", "digits", "d" * 64, "/data/digits", 1797)
    saved = [file.path for file in client(tracker).list_artifacts(run)]
    assert saved == ["config", "notes.txt", "samples", "tables"]
    downloaded = Path(client(tracker).download_artifacts(run, "tables/fd.json", str(tmp_path)))
    assert json.loads(downloaded.read_text()) == {"columns": ["fd", "at"], "data": [[1.0, "a"], [None, "b"]]}
    # What the UI lists under "Evaluation"; MlflowClient.load_table reads it from the global store, so not used here.
    tag = client(tracker).get_run(run).data.tags["mlflow.loggedArtifacts"]
    assert json.loads(tag) == [{"path": "tables/fd.json", "type": "table"}]
    (dataset,) = client(tracker).get_run(run).inputs.dataset_inputs
    assert (dataset.dataset.name, json.loads(dataset.dataset.profile)) == ("digits", {"num_rows": 1797})
    assert Path(storage / "mlartifacts").is_dir()


def test_a_file_that_is_not_true_any_more_is_taken_back(storage, tracker, request):
    run = tracker.open_run("t", "t", params={}, tags={})
    tracker.log_text("t", "the loss is nan", "error.txt")
    tracker.log_text("t", "kept", "notes.txt")
    later = started(storage, request.node.name)
    later.open_run("t", "t", params={}, tags={})
    later.remove_file("t", "error.txt")
    later.remove_file("t", "stopped.txt")
    assert [file.path for file in client(tracker).list_artifacts(run)] == ["notes.txt"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_dead_server_is_named_once_and_holds_nothing_up(tmp_path, storage):
    MlflowStore(None, storage)._client()  # the import is not what is timed
    lines: list[str] = []
    uri = f"http://ann:secret@127.0.0.1:{free_port()}"
    tracker = make_tracker(uri, tmp_path, lines.append)
    begin = time.monotonic()
    tracker.start_experiment("x")
    assert tracker.open_run("t", "t", params={"a": 1}, tags={}) is None
    for step in range(50):
        tracker.sync_events("t", [train(step, 1.0)])
    tracker.close_run("t", "finished")
    tracker.close()
    assert time.monotonic() - begin < 3
    assert len(lines) == 2
    assert "is away" in lines[0]
    assert "not sent" in lines[1]
    assert not any("secret" in line or "\n" in line for line in lines)


def python(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_making_a_tracker_imports_no_mlflow_and_writes_nothing(tmp_path):
    code = """
import sys, pathlib
from cmray.tracking.make import make_tracker
make_tracker(None, pathlib.Path("store"), print).ui_command()
assert not {"mlflow", "ray", "torch", "pandas"} & set(sys.modules), "slow imports"
"""
    result = python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_new_store_is_silent_stays_in_its_folder_and_warms_up_beside_other_imports(tmp_path):
    code = """
import pathlib, time
from cmray.tracking.make import make_tracker
tracker = make_tracker(None, pathlib.Path("store"), print)
begin = time.monotonic(); tracker.warm_up(); assert time.monotonic() - begin < 0.2
import pandas, yaml, sqlite3, requests
tracker.start_experiment("x")
assert tracker.open_run("a", "a", params={}, tags={})
pathlib.Path("file.txt").write_text("x")
tracker.log_artifact("a", pathlib.Path("file.txt"))
"""
    result = python(code, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "store"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["mlartifacts", "mlflow.db"]


@pytest.mark.slow
def test_a_server_with_its_own_artifact_root_that_goes_away_and_comes_back(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "served")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}

    def serve() -> subprocess.Popen[bytes]:
        with (tmp_path / "server.log").open("ab") as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return server
            time.sleep(0.1)
        raise AssertionError((tmp_path / "server.log").read_text())

    def stop(server: subprocess.Popen[bytes]) -> None:
        os.killpg(server.pid, 9)
        server.wait()

    server = serve()
    lines: list[str] = []
    try:
        tracker = MlflowTracker(f"http://127.0.0.1:{port}", tmp_path / "unused", lines.append)
        tracker.start_experiment("served")
        run = tracker.open_run("t", "t", params={"a": "é"}, tags={})
        tracker.sync_events("t", [train(step, 1.0) for step in range(1000)] + [curve(1, 1.0, math.nan)])
        tracker.log_text("t", "hello", "notes/a.txt")
        assert lines == []
        stop(server)
        tracker.sync_events("t", [train(1000, 1.0)])
        tracker.log_text("t", "later", "notes/b.txt")
        assert len(lines) == 1
        server = serve()
        tracker.close()
        assert len(lines) == 1
        assert sorted(step for step, _ in history(tracker, run, "loss")) == list(range(1001))
        assert [f.path for f in client(tracker).list_artifacts(run, "notes")] == [
            "notes/a.txt",
            "notes/b.txt",
        ]
        assert len(list((tmp_path / "served").rglob("*.txt"))) == 2
        assert not (tmp_path / "unused").exists()
    finally:
        stop(server)
