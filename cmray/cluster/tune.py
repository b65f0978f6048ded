"""Many trials at once under Ray Tune, as many as fit. A one-worker trial trains inside Tune's own actor."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from cmray.cluster.at_hand import noted, scratch_of
from cmray.cluster.places import ON_HEAD, Places, RemotePlaces, bundle_of, keep_places
from cmray.cluster.resources import Capacity
from cmray.cluster.spec import TrialSpec
from cmray.cluster.train import MAX_FAILURES, train_ddp
from cmray.cluster.work import (
    TuneSession,
    attempted,
    keep_error,
    log_line,
    moves,
    note_failure,
    run_trial,
)
from cmray.config.resources import ResourcesConfig
from cmray.core.errors import CmrayError, StorageError
from cmray.core.files import disk_full, no_room


class Tuning:
    """Trains trials in the order given; one that does not fit lets smaller ones behind it pass.

    A trial that fails on its own account is noted and does not sink the others; one whose process or node dies is
    started again from its last checkpoint, at most three times.

    Args:
        limit: most trials at once; None for as many as fit.
        scratch: a folder that all nodes share, for Ray's own bookkeeping.
        may_start: asked before a trial starts; once it says no, those that run are waited for, and no more.
    """

    def __init__(self, capacity: Capacity, limit: int | None, scratch: Path, may_start: Callable[[], bool]):
        self._capacity, self._limit, self._scratch, self._may_start = capacity, limit, scratch, may_start

    def run(self, specs: Sequence[TrialSpec], data: ray.ObjectRef) -> None:
        """Returns when each trial has a result.json or an error.txt, was asked to stop, or may not start any more."""
        if len(specs) == 1 and specs[0].config.resources.workers > 1:  # Tune would add nothing but its start-up
            if self._may_start():
                _run_alone(specs[0], data, self._scratch, self._capacity)
            return
        self._scratch.mkdir(parents=True, exist_ok=True)
        store = Path(tempfile.mkdtemp(prefix="tune-", dir=self._scratch))
        places = keep_places([spec.config.resources for spec in specs], self._capacity, self._limit)
        try:
            self._fit(specs, data, store, places)
        finally:
            places.close()
            shutil.rmtree(store, ignore_errors=True)

    def _fit(self, specs: Sequence[TrialSpec], data: ray.ObjectRef, store: Path, places: Places) -> None:
        remote = places if isinstance(places, RemotePlaces) else None
        function = tune.with_parameters(
            _trial, specs=list(specs), data=[data], scratch=str(self._scratch), places=[remote]
        )
        sizes, deaths = [_reserved(spec) for spec in specs], _Deaths(specs)
        tuner = tune.Tuner(
            tune.with_resources(function, lambda config: tune.PlacementGroupFactory([sizes[config["trial"]]])),
            tune_config=tune.TuneConfig(
                search_alg=_Admitted(specs, places, self._capacity.where, self._may_start),
                num_samples=len(specs),
                # Tune starts so many processes side by side; else one, which short trials never wait for
                max_concurrent_trials=min(self._limit or len(specs), len(specs)),
                # Tune keeps an idle actor, and what it holds, which trials of another size would wait for
                reuse_actors=all(size == sizes[0] for size in sizes),
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(store),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[deaths],
                verbose=0,
            ),
        )
        try:
            results = tuner.fit()
        except Exception as error:  # Tune words what its callbacks meet, and what it meets itself, as a traceback
            raise deaths.failure or no_room(store) or error from None
        for result in results:
            if result.error is not None and result.config is not None:
                note_failure(specs[result.config["trial"]], result.error, MAX_FAILURES + 1)


class _Admitted(Searcher):
    """Gives Tune the trials that have room now. What Tune calls a suggestion is the place of a trial in `specs`."""

    def __init__(self, specs: Sequence[TrialSpec], places: Places, where: str, may_start: Callable[[], bool]):
        super().__init__()
        self._specs, self._needs = specs, [spec.config.resources for spec in specs]
        self._places, self._where, self._may_start = places, where, may_start
        self._waiting = list(range(len(specs)))
        self._running: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self._waiting or not self._may_start():
            return Searcher.FINISHED
        refused: list[ResourcesConfig] = []
        for place in self._waiting:
            if self._needs[place] in refused:
                continue
            refused.append(self._needs[place])
            if self._places.admit(self._specs[place].name, self._needs[place]):
                self._waiting.remove(place)
                self._running[trial_id] = place
                return {"trial": place}
        if not self._running:
            raise CmrayError(f"there is no room for {self._specs[self._waiting[0]].name} on {self._where}")
        return None  # Tune asks again

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._places.release(self._specs[self._running.pop(trial_id)].name)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is to do is read from the trials' folders."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as nothing was saved."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it was given; nothing asks for it back


class _Deaths(tune.Callback):
    """Keeps the errors of processes that died."""

    def __init__(self, specs: Sequence[TrialSpec]):
        self._specs = specs
        #: what kept it from keeping one, such as a full disk
        self.failure: StorageError | None = None

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        spec, error = self._specs[trial.config["trial"]], trial.get_pickled_error()
        if isinstance(error, RayTaskError) and isinstance(error.cause, RayActorError) and error.cause.preempted:
            return  # it moves, and has said so
        try:
            _, file = keep_error(spec, error or RuntimeError("its process died"))
            log_line(Path(spec.folder), f"its process died; it is started again, see errors/{file.name}")
        except StorageError as failure:
            self.failure = failure
        except OSError as failure:
            self.failure = disk_full(Path(spec.folder), failure)


def _reserved(spec: TrialSpec) -> dict[str, float]:
    """What a trial's own process takes. Where it has several workers they are Ray Train's, and were admitted."""
    need = spec.config.resources
    return ON_HEAD if need.workers > 1 else bundle_of(need)


def _run_alone(spec: TrialSpec, data: ray.ObjectRef, scratch: Path, capacity: Capacity) -> None:
    """A trial with several workers that nothing runs beside."""
    need = spec.config.resources
    places = keep_places([need], capacity, None) if need.min_workers is not None else None
    try:
        _run_ddp(spec, data, scratch, places)
    finally:
        if places is not None:
            places.close()


def _run_ddp(spec: TrialSpec, data: ray.ObjectRef, scratch: Path, places: Places | None) -> None:
    with noted(spec) as here:
        attempted(here, lambda: train_ddp(here, data, scratch_of(here, scratch), places))


def _trial(
    config: dict[str, Any],
    specs: list[TrialSpec],
    data: list[ray.ObjectRef],
    scratch: str,
    places: list[RemotePlaces | None],
) -> dict[str, Any]:
    spec, keeper = specs[config["trial"]], places[0]
    resources = spec.config.resources
    if resources.workers > 1:
        _run_ddp(spec, data[0], Path(scratch), keeper)
    else:
        if keeper is not None:
            keeper.stands(spec.name, 0, 1, ray.get_runtime_context().get_node_id())
        with noted(spec) as here:
            session = TuneSession(torch.device("cuda" if resources.gpus_per_worker else "cpu"), Path(here.folder))
            outcome = attempted(here, lambda: run_trial(here, ray.get(data[0]), session))
            if outcome is not None and moves(here, outcome):
                # which Tune does not count as a failure, and starts elsewhere
                raise RayActorError(error_msg="its node is taken away", preempted=True)
    return {"ended": True}  # a trial without a final result would run again
