"""A run with several workers: DDP under Ray Train."""

from __future__ import annotations

import shutil
import tempfile
import traceback
import uuid
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cmray.cluster.at_hand import noted
from cmray.cluster.work import TrainSession, TrialFailedError, TrialSpec, keep_error, run_trial
from cmray.core.errors import CmrayError

#: how often a run whose worker or node died is started again from its last checkpoint
MAX_FAILURES = 3


def train_ddp(spec: TrialSpec, data: ray.ObjectRef, scratch: Path) -> None:
    """Trains with `resources.workers` processes, until there is a result.json or the trial was asked to stop.

    Ray Train restarts the workers when one dies; the loop resumes from its own checkpoints.

    Args:
        data: what `put_training_data` gave.
        scratch: a folder that all nodes share, for Ray Train's own bookkeeping.

    Raises:
        TrialFailedError: the trial failed on its own account.
        Exception: Ray's, when the workers died too often.
    """
    resources = spec.config.resources
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    # a fresh name each time: Ray Train would otherwise restore a state that our own checkpoints make needless
    scratch.mkdir(parents=True, exist_ok=True)
    store = Path(tempfile.mkdtemp(prefix="train-", dir=scratch))
    try:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"spec": spec, "data": [data]},
            torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=per_worker
            ),
            run_config=ray.train.RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(store),
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        failure = trainer.fit().return_value
    finally:
        shutil.rmtree(store, ignore_errors=True)
    if failure is not None:
        raise TrialFailedError(*failure)


def _worker(config: dict[str, Any]) -> tuple[str, str] | None:
    """One worker; returns (reason, traceback) of a failure that would happen again: Ray Train restarts for others."""
    (reference,) = config["data"]
    with noted(config["spec"]) as spec:
        try:
            run_trial(spec, ray.get(reference), TrainSession(Path(spec.folder)))
        except CmrayError as error:
            return str(error), traceback.format_exc()
        except Exception as error:
            keep_error(spec, error)
            raise
    return None
