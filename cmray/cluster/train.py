"""A run with several workers: DDP under Ray Train.

A run of a fixed size is Ray Train's to restart. An elastic one (`resources.min_workers`) is started anew by cmray, each
time with the workers that have room. Ray Train can change the size of a run too, but it counts what the cluster has and
not what other trials hold, leaves no CPU to Ray Data, and ends the workers where they are, so that the steps since the
last checkpoint are lost; ours save first.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cmray.cluster.at_hand import noted
from cmray.cluster.places import Places, RemotePlaces, bundle_of, is_free
from cmray.cluster.spec import TrialSpec
from cmray.cluster.together import part, say_why, why
from cmray.cluster.work import TrainSession, TrialFailedError, keep_error, log_line, moves, run_trial
from cmray.core.errors import CmrayError
from cmray.engine.checkpoint import newest_checkpoint
from cmray.engine.stop import StopFile, ask_to_stop

#: how often a run whose worker or node died is started again from its last checkpoint; of an elastic run, from the
#: same one
MAX_FAILURES = 3
#: what rank 0 returns when all have left to go on elsewhere
MOVED = "moved"
#: seconds between two looks whether an elastic run has room for more workers, and while it waits for the least number
GROW_EVERY, WAIT_EVERY = 5.0, 2.0
#: seconds that Ray gets to find the room for the workers of an elastic run, before their number is thought over again
PATIENCE = 20.0


def train_ddp(spec: TrialSpec, data: ray.ObjectRef, scratch: Path, places: Places | None) -> None:
    """Trains with `resources.workers` processes, until there is a result.json or the trial was asked to stop.

    Ray Train restarts the workers when one dies; the loop resumes from its own checkpoints. Workers whose node is
    about to be taken away save and leave, and others go on where Ray finds room, or waits for it. An elastic run goes
    on with as many as have room.

    Args:
        data: what `put_training_data` gave.
        scratch: a folder that all nodes share, for Ray Train's own bookkeeping.
        places: where the trial was let in; only an elastic one needs it.

    Raises:
        TrialFailedError: the trial failed on its own account.
        Exception: Ray's, when the workers died too often.
    """
    if spec.config.resources.min_workers is None:
        while _fit(spec, data, scratch, places, spec.config.resources.workers):
            pass
    else:
        assert places is not None
        _elastic(spec, data, scratch, places)


def _elastic(spec: TrialSpec, data: ray.ObjectRef, scratch: Path, places: Places) -> None:
    """Trains with the workers that have room, and with others when one is lost or more have room."""
    lost_at, failures, goes_on = -1, 0, True
    while goes_on:
        workers = _await_room(spec, places)
        if workers is None:
            return
        try:
            goes_on = _fit(spec, data, scratch, places, workers)
        except TrialFailedError:
            raise
        except Exception as error:
            found = newest_checkpoint(Path(spec.folder) / "checkpoints", lambda _: None)
            step = found[0].step if found else 0
            failures, lost_at = failures + 1 if step <= lost_at else 1, step
            if failures > MAX_FAILURES:
                raise
            _, file = keep_error(spec, error)
            log_line(Path(spec.folder), f"a worker was lost; it goes on from step {step:,}, see errors/{file.name}")


def _await_room(spec: TrialSpec, places: Places) -> int | None:
    """With how many workers an elastic run can go on; waits for its least number. None when it is asked to stop."""
    need, stop, told = spec.config.resources, StopFile(Path(spec.folder)), False
    while not stop.asked():
        workers = places.again(spec.name, need)
        if workers is not None and is_free(need, workers, PATIENCE):
            return workers
        if not told:
            least = need.least_workers
            log_line(Path(spec.folder), f"waits for room for {least} worker{'s' * (least > 1)} or more")
            told = True
        time.sleep(WAIT_EVERY)
    return None


@contextmanager
def _growing(spec: TrialSpec, places: Places | None, workers: int, room: Path) -> Iterator[None]:
    """While this lasts, an elastic run is asked to save and leave once more workers than these have room."""
    over = threading.Event()

    def look(places: Places) -> None:
        while not over.wait(GROW_EVERY):
            try:
                if places.room(spec.name) > workers:
                    ask_to_stop(room, "more workers have room")
                    return
            except Exception:  # the head is away; it may come back
                continue

    need = spec.config.resources
    if places is not None and need.min_workers is not None and workers < need.workers:
        threading.Thread(target=look, args=(places,), daemon=True, name="cmray-growing").start()
    try:
        yield
    finally:
        over.set()


def _fit(spec: TrialSpec, data: ray.ObjectRef, scratch: Path, places: Places | None, workers: int) -> bool:
    """Trains on one set of nodes. True when it left them and is to go on elsewhere."""
    resources = spec.config.resources
    # a fresh name each time: Ray Train would otherwise restore a state that our own checkpoints make needless
    scratch.mkdir(parents=True, exist_ok=True)
    store = Path(tempfile.mkdtemp(prefix="train-", dir=scratch))
    try:
        said = store / "failure.json"
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "spec": spec,
                "data": [data],
                "said": str(said),
                "places": places if isinstance(places, RemotePlaces) else None,
            },
            torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=bundle_of(resources)
            ),
            run_config=ray.train.RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(store),
                failure_config=_failures(resources.min_workers is not None),
            ),
        )
        try:
            with _growing(spec, places, workers, store):
                moved = trainer.fit().return_value == MOVED
        except Exception as error:
            raise why(said) or error from None
        failure = why(said)
    finally:
        shutil.rmtree(store, ignore_errors=True)
    if failure is not None:
        raise failure
    return moved


def _failures(elastic: bool) -> ray.train.FailureConfig:
    """What Ray Train restarts by itself: nothing of an elastic run, whose workers are counted anew."""
    if elastic:
        return ray.train.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
    return ray.train.FailureConfig(max_failures=MAX_FAILURES)


def _worker(config: dict[str, Any]) -> str | None:
    """One worker; returns MOVED when they all have left, to go on elsewhere.

    A failure that would happen again is said in the file `said`, for the driver and the other workers; Ray Train
    starts the workers again for all others.
    """
    said = Path(config["said"])
    (reference,) = config["data"]
    if why(said) is not None:  # said by the workers before these
        return None
    with noted(config["spec"]) as spec:
        session = TrainSession(Path(spec.folder), said.parent)
        if config["places"] is not None:
            node = ray.get_runtime_context().get_node_id()
            config["places"].stands(spec.name, session.rank, session.world_size, node)
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
        if session.rank != 0:
            return None
        reason = "there is room for more workers" if session.makes_room else "its node is taken away"
        return MOVED if moves(spec, outcome, reason) else None
