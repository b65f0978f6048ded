"""Runs and models kept by MLflow: the only file that imports it, and only when the store is first used."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import logging
import os
import posixpath
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cmray.core.errors import CmrayError
from cmray.core.files import beside
from cmray.tracking.mirror import Found, MirrorTracker, Point
from cmray.tracking.names import check_uri, metric_name, ui_command, without_password
from cmray.tracking.served import ServedModel, ServedSampler, requirements

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient
    from pandas import DataFrame

KEY_TAG = "cmray.key"
CONTENT_TAG = "cmray.content"
_VERSIONS_TAG = "mlflow.modelVersions"
#: the alias of the version that is the best now: models:/NAME@best
ALIAS = "best"
# The most that one log_batch takes: 1000 things of all kinds together, 100 params, 100 tags.
_METRICS, _PARAMS = 800, 100
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # No retries below us: the queue repeats what failed, after a look at what did arrive. A repeated create_run
    # whose first answer got lost would make a second run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


class MlflowTracker(MirrorTracker):
    """A Tracker whose runs are kept by MLflow.

    `uri` None is <storage>/mlflow.db with artifacts in <storage>/mlartifacts; any other URI is used as it is.
    Raises CmrayError at construction for a URI that MLflow cannot use; nothing is started or written by then.
    """

    def __init__(self, uri: str | None, storage: Path, warn: Callable[[str], None]) -> None:
        super().__init__(MlflowStore(uri, storage), warn)


class MlflowStore:
    """A RunStore over `MlflowClient`; there is no active run, so other uses of mlflow are left alone."""

    def __init__(self, uri: str | None, storage: Path) -> None:
        self._storage = storage.absolute() if uri is None else None
        self.uri = uri if uri is not None else f"sqlite:///{storage.absolute()}/mlflow.db"
        check_uri(self.uri)
        self._starting = threading.Lock()
        self._started: MlflowClient | None = None

    def where(self) -> str:
        return f"MLflow at {without_password(self.uri)}"

    def ui_command(self) -> str:
        return ui_command(self.uri)

    def _client(self) -> MlflowClient:
        # One thread may be warming up while another needs the client: two migrations of a new store would race.
        with self._starting:
            if self._started is None:
                os.environ.update(_ENVIRONMENT)
                from mlflow.tracking import MlflowClient

                # The migrations of a new store talk at INFO.
                logging.getLogger("mlflow").setLevel(logging.ERROR)
                if self._storage is not None:
                    self._storage.mkdir(parents=True, exist_ok=True)
                self._started = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            return self._started

    def probe(self) -> None:
        self._client().search_experiments(max_results=1)

    def open_experiment(self, name: str, tags: Mapping[str, str]) -> str:
        client = self._client()
        found = client.get_experiment_by_name(name)
        if found is None:
            root = None if self._storage is None else (self._storage / "mlartifacts").as_uri()
            return client.create_experiment(name, artifact_location=root, tags=dict(tags))
        if found.lifecycle_stage == "deleted":  # its name stays taken until `mlflow gc`
            client.restore_experiment(found.experiment_id)
        for tag, value in tags.items():
            if found.tags.get(tag) != value:
                client.set_experiment_tag(found.experiment_id, tag, value)
        return found.experiment_id

    def open_run(self, experiment: str, key: str, name: str, tags: Mapping[str, str]) -> Found:
        client = self._client()
        # The oldest, should a person have copied one.
        quote = '"' if "'" in key else "'"
        same_key = f"tags.`{KEY_TAG}` = {quote}{key}{quote}"
        order = ["attributes.start_time ASC"]
        found = client.search_runs([experiment], same_key, max_results=1, order_by=order)
        own = {**tags, KEY_TAG: key, "mlflow.user": _user()}  # of who began it, whoever goes on
        run = found[0] if found else client.create_run(experiment, tags=own, run_name=name)
        status = run.info.status
        if status not in ("RUNNING", "FINISHED"):
            client.update_run(run.info.run_id, "RUNNING")
            status = "RUNNING"
        data = run.data
        return Found(run.info.run_id, status, dict(data.tags), set(data.params), set(data.metrics))

    def send(self, run: str, params: Mapping[str, str], tags: Mapping[str, str], points: Sequence[Point]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        all_metrics = [Metric(point.name, point.value, point.milliseconds, point.step) for point in points]
        all_params = [Param(name, value) for name, value in params.items()]
        all_tags = [RunTag(tag, value) for tag, value in tags.items()]
        while all_metrics or all_params or all_tags:
            metrics, all_metrics = all_metrics[:_METRICS], all_metrics[_METRICS:]
            some_params, all_params = all_params[:_PARAMS], all_params[_PARAMS:]
            # Tags go last: the synced step must not be there before its points are.
            some_tags: list[RunTag] = []
            if not all_metrics and not all_params:
                some_tags, all_tags = all_tags[:_PARAMS], all_tags[_PARAMS:]
            self._client().log_batch(run, metrics=metrics, params=some_params, tags=some_tags)

    def history(self, run: str, metric: str) -> dict[int, float]:
        return {point.step: point.value for point in self._client().get_metric_history(run, metric)}

    def upload(self, run: str, data: bytes, file: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / posixpath.basename(file)
            local.write_bytes(data)
            self._client().log_artifact(run, str(local), posixpath.dirname(file) or None)

    def remove(self, run: str, file: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        folder = self._client().get_run(run).info.artifact_uri
        get_artifact_repository(str(folder), tracking_uri=self.uri).delete_artifacts(file)

    def add_dataset(self, run: str, name: str, digest: str, source: str, rows: int) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # The store keeps one entry for each (name, digest); MLflow's longest digest is 36 characters.
        dataset = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local" if "://" not in source else urlsplit(source).scheme,
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": rows}),
        )
        tag = InputTag("mlflow.data.context", "training")
        self._client().log_inputs(run, datasets=[DatasetInput(dataset, [tag])])

    def register(self, experiment: str, run: str, model: ServedModel) -> None:
        _register(self._client(), experiment, run, model)

    def end(self, run: str, status: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints addresses of a server, with their passwords
            self._client().set_terminated(run, status)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def trial_of_run(run_id: str, uri: str | None, storage: Path) -> str | None:
    """EXPERIMENT/TRIAL of a run that cmray made, None for any other run. Raises CmrayError for a bad URI."""
    try:
        return MlflowStore(uri, storage)._client().get_run(run_id).data.tags.get("cmray.trial")
    except Exception as error:
        if isinstance(error, CmrayError):
            raise
        return None


# ---------------------------------------------------------------- the registry of models


def _register(client: MlflowClient, experiment: str, run: str, model: ServedModel) -> str:
    """The version of `model` in the registry, made unless one of the same content is there; ALIAS points to it.

    Killed at any point and called again it goes on where it was. Raises whatever MLflow raises when it is away.
    """
    from mlflow.exceptions import MlflowException

    content = model.content
    try:
        registered = client.get_registered_model(model.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        registered = client.create_registered_model(model.name, tags={"cmray.experiment": model.name})
    versions = client.search_model_versions(f"name = '{model.name}'")
    same = [int(v.version) for v in versions if v.tags.get(CONTENT_TAG) == content]
    logged = None
    if same:
        version = str(min(same))
    else:
        logged = _logged(client, experiment, run, model, content)
        # Not models:/ID: a registry over SQL would look that up in the tracking store of the whole process.
        made = client.create_model_version(
            model.name,
            logged.artifact_location,
            run_id=run,
            tags={**model.tags, CONTENT_TAG: content},
            description=model.description,
            await_creation_for=0,
            model_id=logged.model_id,
        )
        version = str(made.version)
    if str(registered.aliases.get(ALIAS)) != version:
        _link(client, logged or _logged(client, experiment, run, model, content), model.name, version)
        client.set_registered_model_alias(model.name, ALIAS, version)
    return version


def _link(client: MlflowClient, logged: LoggedModel, name: str, version: str) -> None:
    """Lets the model's page show its version; a server does so by itself."""
    known = json.loads(client.get_logged_model(logged.model_id).tags.get(_VERSIONS_TAG, "[]"))
    if not any((v["name"], str(v["version"])) == (name, version) for v in known):
        known.append({"name": name, "version": version})
        client.set_logged_model_tags(logged.model_id, {_VERSIONS_TAG: json.dumps(known)})


def _logged(client: MlflowClient, experiment: str, run: str, model: ServedModel, content: str) -> LoggedModel:
    """The model in the experiment, under "Models", with its files; one that was not uploaded whole is completed."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    found = client.search_logged_models([experiment], f"tags.`{CONTENT_TAG}` = '{content}'", max_results=1)
    if found:
        logged = found[0]
    else:
        params = {"nfe": str(model.nfe), "times": ", ".join(map(repr, model.times or ())) or "of nfe"}
        tags = {**model.tags, CONTENT_TAG: content}
        logged = client.create_logged_model(experiment, model.trial, run, tags, params, "sampler")
    if logged.status == LoggedModelStatus.READY:
        return logged
    outputs = client.get_run(run).outputs
    if logged.model_id not in [o.model_id for o in (outputs.model_outputs if outputs else [])]:
        step = max((m[3] for m in model.metrics), default=0)
        client.log_outputs(run, [LoggedModelOutput(logged.model_id, step)])
    points = [
        Metric(metric_name(name), value, int(time * 1000), step, model_id=logged.model_id, run_id=run)
        for name, value, time, step in model.metrics
    ]
    if points:  # the run has the same ones already, so that only the model gets them
        client.log_batch(run, metrics=points)
    with tempfile.TemporaryDirectory() as folder:
        _save(model, Path(folder) / "model", logged, run)
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    return client.finalize_logged_model(logged.model_id, "READY")


def save_pyfunc(model: ServedModel, path: Path) -> None:
    """Writes the model as a folder that `mlflow models serve -m FOLDER` serves. No store is asked or made.

    Raises CheckpointError for a checkpoint that is damaged.
    """
    os.environ.update(_ENVIRONMENT)
    with beside(path) as tmp:
        _save(model, tmp)


def _save(model: ServedModel, path: Path, logged: LoggedModel | None = None, run: str | None = None) -> None:
    """Writes the model as MLflow's pyfunc flavor, with signature, example and requirements, into a new folder."""
    import mlflow.pyfunc
    from mlflow.models import Model
    from pandas import DataFrame

    known: dict[str, Any] = {"run_id": run} if run else {}
    if logged is not None:
        known |= {"artifact_path": logged.artifact_location, "model_uuid": logged.model_id, "model_id": logged.model_id}
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # the folder somebody calls us from is not ours to pack
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "sampler"
        model.write(data)
        mlflow.pyfunc.save_model(
            str(path),
            loader_module=__name__,
            data_path=str(data),
            mlflow_model=Model(**known),
            signature=_signature(model),
            input_example=DataFrame([model.example]),
            pip_requirements=requirements(),
        )


def _signature(model: ServedModel) -> ModelSignature:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    channels, height, width = model.facts.shape
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.long, "seed"),
        ColSpec(DataType.long, "count", required=False),
        ColSpec(Array(DataType.long), "labels", required=False),
        ColSpec(Array(DataType.double), "times", required=False),
    ]
    images = TensorSpec(np.dtype(np.uint8), (-1, height, width, channels))
    return ModelSignature(Schema(inputs), Schema([images]))


class PyfuncSampler:
    """A served sampler whose refusals are the caller's mistakes to MLflow's server, with status 400."""

    def __init__(self, sampler: ServedSampler):
        self._sampler = sampler

    def predict(self, requests: DataFrame) -> np.ndarray:
        """As `ServedSampler.predict`. Raises MlflowException, with one line, for a value that is out of range."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

        try:
            return self._sampler.predict(requests)
        except CmrayError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None


def _load_pyfunc(data_path: str) -> PyfuncSampler:
    """Called by MLflow, by this name, with the folder that `ServedModel.write` made."""
    return PyfuncSampler(ServedSampler(Path(data_path)))
