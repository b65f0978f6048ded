"""Puts a sampler into MLflow's registry of models, once for each content. Imports mlflow when it is used."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmray.tracking.names import metric_name
from cmray.tracking.served import ServedModel

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

CONTENT_TAG = "cmray.content"
_VERSIONS_TAG = "mlflow.modelVersions"
#: the alias of the version that is the best now: models:/NAME@best
ALIAS = "best"
_REQUIRED = ("cmray", "mlflow", "torch", "torchvision", "numpy", "pandas", "pydantic", "pyyaml", "safetensors")


def register(client: MlflowClient, experiment: str, run: str, model: ServedModel) -> str:
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
        logged = client.create_logged_model(experiment, _model_name(model), run, tags, params, "sampler")
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
        save(model, Path(folder) / "model", logged, run)
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    return client.finalize_logged_model(logged.model_id, "READY")


def _model_name(model: ServedModel) -> str:
    return model.checkpoint.parent.parent.name  # the trial's


def save(model: ServedModel, path: Path, logged: LoggedModel | None = None, run: str | None = None) -> None:
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
            loader_module="cmray.tracking.served",
            data_path=str(data),
            mlflow_model=Model(**known),
            signature=_signature(model),
            input_example=DataFrame([model.example]),
            pip_requirements=_requirements(),
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


def _requirements() -> list[str]:
    """cmray and what it samples with, in the versions that are here; nothing is resolved or downloaded."""
    pinned = []
    for name in _REQUIRED:
        try:
            pinned.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return pinned
