"""Many trials at once under Ray Tune. A one-worker trial trains inside Tune's own, reused actor."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from cmray.cluster.train import MAX_FAILURES, train_ddp
from cmray.cluster.work import TrialSpec, TuneSession, note_failure, run_trial


def tune_trials(specs: Sequence[TrialSpec], data: ray.ObjectRef, concurrency: int, scratch: Path) -> None:
    """Trains all specs, `concurrency` at a time; returns when each has a result.json or an error.txt.

    A trial that fails on its own account is noted and does not sink the others; one whose process or node dies is
    started again from its last checkpoint, at most three times.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    store = Path(tempfile.mkdtemp(prefix="tune-", dir=scratch))

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        run = specs[config["trial"]].config.resources
        if run.workers > 1:  # its workers are Ray Train's, counted by `concurrency`
            return tune.PlacementGroupFactory([{"CPU": 0.01}])
        gpus = {"GPU": run.gpus_per_worker} if run.gpus_per_worker else {}
        return tune.PlacementGroupFactory([{"CPU": run.cpus_per_worker, **gpus}])

    try:
        function = tune.with_parameters(_trial, specs=list(specs), data=[data], scratch=str(scratch))
        tuner = tune.Tuner(
            tune.with_resources(function, resources),
            param_space={"trial": tune.grid_search(list(range(len(specs))))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=concurrency),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(store),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                verbose=0,
            ),
        )
        results = tuner.fit()
        for i, spec in enumerate(specs):
            error = results[i].error
            if error is not None:
                note_failure(spec, error)
    finally:
        shutil.rmtree(store, ignore_errors=True)


def _trial(config: dict[str, Any], specs: list[TrialSpec], data: list[ray.ObjectRef], scratch: str) -> dict[str, Any]:
    spec = specs[config["trial"]]
    resources = spec.config.resources
    try:
        if resources.workers > 1:
            train_ddp(spec, data[0], Path(scratch))
        else:
            device = torch.device("cuda" if resources.gpus_per_worker else "cpu")
            run_trial(spec, ray.get(data[0]), TuneSession(device))
    except Exception as error:
        return {"failed": note_failure(spec, error)}
    return {"failed": ""}
