"""Models in MLflow's registry, on a real SQLite store: one version for each content, whatever happens in between."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pandas as pd
import pytest
from small_run import checkpoint, go, small

from cmray.tracking.mlflow import ALIAS, CONTENT_TAG, MlflowTracker
from cmray.tracking.served import ServedModel, ServedSampler

TIMES = (80.0, 0.8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "ct-1a2b3c"
    go(small(), folder)
    return checkpoint(folder)


class Place:
    """A tracker of one experiment with one open run, as the driver has it; `again` is the next sweep's."""

    def __init__(self, storage: Path, name: str):
        self.storage, self.name, self.lines = storage, name, []
        self.again()

    def again(self) -> None:
        self.tracker = MlflowTracker(None, self.storage, self.lines.append)
        self.tracker.start_experiment(self.name)
        run = self.tracker.open_run("t", "a trial", params={}, tags={})
        assert run is not None
        self.run = run
        self.client: Any = self.tracker._store._client()  # type: ignore[attr-defined]

    def versions(self) -> dict[int, str]:
        """Content by version."""
        found = self.client.search_model_versions(f"name = '{self.name}'")
        return {int(v.version): v.tags[CONTENT_TAG] for v in found}

    def best(self) -> int:
        return int(self.client.get_model_version_by_alias(self.name, ALIAS).version)

    def models(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name(self.name).experiment_id
        return list(self.client.search_logged_models([experiment]))


@pytest.fixture
def place(mlflow_storage, request) -> Place:
    return Place(mlflow_storage, re.sub(r"[^a-z]+", " ", request.node.name))


def model(weights: Path, name: str, *times: float, **more: Any) -> ServedModel:
    return ServedModel(name, weights, len(times), times, **more)


def test_a_model_is_registered_once_and_the_best_is_named(place, weights):
    one, two = model(weights, place.name, *TIMES, description="two steps"), model(weights, place.name, 80.0)
    place.tracker.register_model("t", one)
    place.tracker.register_model("t", one)
    assert place.lines == []
    assert place.versions() == {1: one.content}
    place.again()
    place.tracker.register_model("t", one)
    assert (list(place.versions()), place.best(), len(place.models())) == ([1], 1, 1)
    place.tracker.register_model("t", two)
    assert place.versions() == {1: one.content, 2: two.content}
    assert place.best() == 2
    place.tracker.register_model("t", one)
    assert (len(place.versions()), place.best(), len(place.models())) == (2, 1, 2)
    version = place.client.get_model_version(place.name, "1")
    assert (version.run_id, version.description) == (place.run, "two steps")
    (logged,) = [m for m in place.models() if m.tags[CONTENT_TAG] == one.content]
    assert version.source == logged.artifact_location
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": place.name, "version": "1"}]
    assert (logged.status, logged.name, logged.source_run_id) == ("READY", "ct-1a2b3c", place.run)
    assert logged.params == {"nfe": "2", "times": "80.0, 0.8"}
    assert place.lines == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "create_registered_model",
        "create_logged_model",
        "log_outputs",
        "log_model_artifacts",
        "finalize_logged_model",
        "create_model_version",
        "set_registered_model_alias",
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_point_it_is_completed_and_nothing_is_double(place, weights, monkeypatch, method, when):
    one = model(weights, place.name, *TIMES)
    real = getattr(type(place.client), method)

    class Killed(BaseException):
        pass

    def kill(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            real(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(type(place.client), method, kill)
        with pytest.raises(Killed):
            place.tracker.register_model("t", one)
    place.again()
    place.tracker.register_model("t", one)
    assert place.lines == []
    assert place.versions() == {1: one.content}
    assert place.best() == 1
    assert [m.status for m in place.models()] == ["READY"]
    files = {f.path for f in place.client.list_logged_model_artifacts(place.models()[0].model_id)}
    assert {"MLmodel", "data", "requirements.txt", "input_example.json"} <= files


def test_its_numbers_stand_at_the_model_and_once_at_the_run(place, weights):
    place.tracker.log_metrics("t", {"final/fd/digits@2": 3.5}, 6, 12.25)
    one = model(weights, place.name, *TIMES, metrics=[("final/fd/digits@2", 3.5, 12.25, 6)])
    place.tracker.register_model("t", one)
    (logged,) = place.models()
    assert [(m.key, m.value, m.step) for m in logged.metrics] == [("final/fd/digits/nfe_2", 3.5, 6)]
    history = place.client.get_metric_history(place.run, "final/fd/digits/nfe_2")
    assert [(m.value, m.step) for m in history] == [(3.5, 6)]
    assert [o.model_id for o in place.client.get_run(place.run).outputs.model_outputs] == [logged.model_id]


def test_what_mlflow_loads_has_a_signature_and_gives_our_images(place, weights, tmp_path):
    import mlflow.pyfunc

    one = model(weights, place.name, *TIMES)
    place.tracker.register_model("t", one)
    loaded = mlflow.pyfunc.load_model(place.client.get_model_version(place.name, "1").source)
    one.write(tmp_path / "direct")
    requests = [{"seed": 5, "count": 2, "times": []}, {"seed": 1, "count": 1, "times": [80, 0.5]}]
    expected = ServedSampler(tmp_path / "direct").predict(pd.DataFrame(requests))
    assert (loaded.predict(pd.DataFrame(requests)) == expected).all()
    assert (loaded.predict(requests[0]) == expected[:2]).all()
    inputs, outputs = loaded.metadata.signature.inputs, loaded.metadata.signature.outputs
    assert inputs.input_names() == ["seed", "count", "labels", "times"]
    assert inputs.required_input_names() == ["seed"]
    assert (outputs.inputs[0].type, outputs.inputs[0].shape) == (np.dtype("uint8"), (-1, 8, 8, 1))
    assert loaded.predict(loaded.input_example).shape == (4, 8, 8, 1)
    with pytest.raises(mlflow.exceptions.MlflowException, match="labels are given, but the model is not"):
        loaded.predict({"seed": 0, "labels": [1]})


def test_requirements_are_pinned_and_name_cmray(place, weights, tmp_path):
    place.tracker.register_model("t", model(weights, place.name, *TIMES))
    (logged,) = place.models()
    folder = Path(url2pathname(urlsplit(logged.artifact_location).path))
    lines = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} >= {"cmray", "mlflow", "torch", "numpy", "safetensors"}
    assert all("==" in line for line in lines)
    assert not list(folder.rglob("*.pkl")), "something was pickled"
