"""`mlflow models serve` on what a sweep registered: the images of `cmray sample`, over HTTP."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from cli_run import ROOT, good, here
from mlflow.tracking import MlflowClient
from mlflow_servers import Server
from small_sweep import Watcher, study_file, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    watcher = Watcher()
    sweep(study_file(folder), folder / "storage", None, watcher)
    assert watcher.lines == []
    return folder / "storage"


@pytest.fixture(scope="module")
def server(storage, tmp_path_factory):
    uri = f"sqlite:///{storage}/mlflow.db"
    arguments = ("models", "serve", "-m", "models:/study/1", "--env-manager", "local")
    environment = {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
    with Server(tmp_path_factory.mktemp("served"), *arguments, environment=environment) as served:
        yield served


def ask(server: Server, request: dict[str, Any]) -> Any:
    """The answer to a POST as (status, JSON)."""
    posted = urllib.request.Request(
        f"{server.url}/invocations", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(posted, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def sampled(storage: Path, folder: Path, trial: str, *options: object) -> np.ndarray:
    """What `cmray sample` writes, [N,H,W,C]."""
    out = folder / "images.npz"
    good(here("sample", trial, *options, "--out", out, "--storage", storage))
    return np.load(out)["arr_0"]


def test_a_served_model_gives_the_bits_of_cmray_sample(storage, server, tmp_path):
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    version = client.get_model_version("study", "1")
    trial = version.tags["cmray.trial"]
    (logged,) = client.search_logged_models([client.get_experiment_by_name("study").experiment_id])
    times = logged.params["times"].replace(" ", "")

    status, answer = ask(server, {"inputs": {"seed": 7, "count": 5}})
    assert status == 200
    expected = sampled(storage, tmp_path, trial, "--times", times, "--num", 5, "--seed", 7)
    assert (np.array(answer["predictions"], np.uint8) == expected).all()

    status, answer = ask(server, {"dataframe_records": [{"seed": 0, "count": 3, "times": [80, 0.5]}]})
    assert status == 200
    expected = sampled(storage, tmp_path, trial, "--times", "80,0.5", "--num", 3)
    assert (np.array(answer["predictions"], np.uint8) == expected).all()

    columns = {"columns": ["seed", "times"], "data": [[3, [80.0]], [4, [80.0]]]}
    status, answer = ask(server, {"dataframe_split": columns})
    assert status == 200
    expected = sampled(storage, tmp_path, trial, "--nfe", 1, "--num", 2, "--seed", 3)
    assert (np.array(answer["predictions"], np.uint8) == expected).all()


def test_the_example_that_is_kept_with_it_works_as_it_is(storage, server):
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    place = urlsplit(client.get_model_version("study", "1").source).path
    example = json.loads((Path(place) / "serving_input_example.json").read_text())
    status, answer = ask(server, example)
    assert status == 200
    assert np.array(answer["predictions"]).shape == (4, 8, 8, 1)


def test_the_requests_of_the_docs_are_answered(server):
    bodies = re.findall(r"-d '(\{.*\})'", (ROOT / "docs" / "mlflow.md").read_text())
    assert len(bodies) == 2
    counts = []
    for body in bodies:
        status, answer = ask(server, json.loads(body))
        assert status == 200
        counts.append(len(answer["predictions"]))
    assert counts == [4, 5]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seed": 0, "count": 0}, "count is 0"),
        ({"seed": 0, "labels": [1]}, "labels are given, but the model is not class-conditional"),
        ({"seed": 0, "times": [0.5, 80]}, "times must descend"),
        ({"count": 3}, "seed"),
    ],
)
def test_a_bad_request_is_answered_with_its_reason(server, asked, message):
    status, answer = ask(server, {"inputs": asked})
    assert status == 400
    assert message in answer["message"]
