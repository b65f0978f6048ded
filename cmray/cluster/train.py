"""A run with several workers: DDP under Ray Train."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cmray.cluster.together import part, say_why, why
from cmray.cluster.work import TrainSession, TrialSpec, keep_error, moves, run_trial
from cmray.core.errors import CmrayError

#: how often a run whose worker or node died is started again from its last checkpoint
MAX_FAILURES = 3
#: what rank 0 returns when all have left a node that is taken away
MOVED = "moved"


def train_ddp(spec: TrialSpec, data: ray.ObjectRef, scratch: Path) -> None:
    """Trains with `resources.workers` processes, until there is a result.json or the trial was asked to stop.

    Ray Train restarts the workers when one dies; the loop resumes from its own checkpoints. Workers whose node is
    about to be taken away save and leave, and others go on where Ray finds room, or waits for it.

    Args:
        data: what `put_training_data` gave.
        scratch: a folder that all nodes share, for Ray Train's own bookkeeping.

    Raises:
        TrialFailedError: the trial failed on its own account.
        Exception: Ray's, when the workers died too often.
    """
    while _fit(spec, data, scratch):
        pass


def _fit(spec: TrialSpec, data: ray.ObjectRef, scratch: Path) -> bool:
    """Trains on one set of nodes. True when it left them and is to go on elsewhere."""
    resources = spec.config.resources
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    # a fresh name each time: Ray Train would otherwise restore a state that our own checkpoints make needless
    scratch.mkdir(parents=True, exist_ok=True)
    store = Path(tempfile.mkdtemp(prefix="train-", dir=scratch))
    try:
        said = store / "failure.json"
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"spec": spec, "data": [data], "said": str(said)},
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
        try:
            moved = trainer.fit().return_value == MOVED
        except Exception as error:
            raise why(said) or error from None
        failure = why(said)
    finally:
        shutil.rmtree(store, ignore_errors=True)
    if failure is not None:
        raise failure
    return moved


def _worker(config: dict[str, Any]) -> str | None:
    """One worker; returns MOVED when they all have left a node that is taken away.

    A failure that would happen again is said in the file `said`, for the driver and the other workers; Ray Train
    starts the workers again for all others.
    """
    spec, said = config["spec"], Path(config["said"])
    (reference,) = config["data"]
    if why(said) is not None:  # said by the workers before these
        return None
    session = TrainSession(Path(spec.folder))
    try:
        outcome = run_trial(spec, ray.get(reference), session)
    except Exception as error:
        if isinstance(error, CmrayError):
            say_why(said, error)
        if why(said) is None:
            keep_error(spec, error)
            raise
        part()
        if session.device.type == "cuda":  # others that wait in NCCL are ended by Ray Train, for this error
            raise
        return None
    return MOVED if session.rank == 0 and moves(spec, outcome) else None
