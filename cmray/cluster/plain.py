"""`cmray train` without Ray: one process, or torchrun's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from cmray.cluster.at_hand import for_nodes
from cmray.cluster.data import describe
from cmray.cluster.spec import TrialSpec
from cmray.cluster.stages import Stage, pending_stages, result_of, spec_of
from cmray.cluster.sweep import Outcome, Sweep
from cmray.cluster.together import part, say_why, why
from cmray.cluster.work import attempted, note_failure, run_trial
from cmray.config.plan import Plan
from cmray.core.errors import ConfigError
from cmray.datasets.location import Location
from cmray.datasets.manifest import read_manifest
from cmray.datasets.mapped import map_shards
from cmray.datasets.shards import read_shards
from cmray.datasets.verified import verify_once
from cmray.engine.batches import TrainingData
from cmray.engine.evaluator import InlinePool
from cmray.engine.session import PlainSession, default_device, from_rank0, plain_session
from cmray.engine.stream import StreamedDataset


class PlainSweep(Sweep):
    """Trains trial after trial in this process; on torchrun's rank 0 it also keeps the records."""

    session: PlainSession

    def check(self, room: bool = True) -> None:
        """Nothing has to fit: the processes are there."""
        plain_device(self.plan)
        self.check_data()
        if self.results is not None:
            self.results.check()

    def run_in_session(self) -> Outcome:
        """`run`, as one of torchrun's processes or alone."""
        with plain_session(plain_device(self.plan)) as self.session:
            return self.run()

    def run(self) -> Outcome:
        self._others_wait = True
        outcome = super().run()
        self._release()
        return outcome

    def _release(self) -> None:
        """Lets the other ranks go; what is left to do is done by one process."""
        if self._others_wait:
            from_rank0(None, self.session)
            self._others_wait = False

    def work(self, stages: Sequence[Stage]) -> None:
        self.prepare_data()
        told = set()
        for stage in stages:
            for trial in self.ready(stage.trials):
                spec, facts, feed = spec_of(trial), trial.data, trial.run.data
                line = describe(feed, facts.name, facts.count, facts.nbytes, on_ray=False)
                if line not in told:
                    told.add(line)
                    self.observer.message(line)
                if feed.feed != "resident":  # the other ranks find the note of it
                    verify_once(facts.folder, read_manifest(facts.folder), self.storage / "verified")
                order = spec, for_nodes(trial.data.folder), self.storage
                _said(spec).unlink(missing_ok=True)
                from_rank0(order, self.session)
                with self.session.listening():  # a signal saves a checkpoint first
                    self.follow(stage.title, [trial], lambda o=order: self._one(*o), 1)
        self._release()
        if self.results is not None:
            self.results.run(InlinePool(self.session.device), "in this process")

    def _one(self, spec: TrialSpec, place: Location, storage: Path) -> None:
        if self.session.world_size > 1:
            try:
                outcome = run_trial(spec, data_here(spec, place, storage), self.session)
            except Exception as error:
                say_why(_said(spec), error)
                part()  # the other ranks are in the middle of something
                failure = why(_said(spec)) or error
                note_failure(spec, failure)
                _said(spec).unlink(missing_ok=True)
                raise failure from None
        else:
            outcome = attempted(spec, lambda: run_trial(spec, data_here(spec, place, storage), self.session))
        if outcome is not None and outcome.status == "stopped":
            raise KeyboardInterrupt


def follow_rank0(plan: Plan) -> None:
    """What torchrun's other ranks do: train what rank 0 says until it says no more."""
    with plain_session(plain_device(plan)) as session, session.listening():
        while order := from_rank0(None, session):
            spec, place, storage = order  # type: ignore[misc]
            try:
                outcome = run_trial(spec, data_here(spec, place, storage), session)
            except Exception as error:
                say_why(_said(spec), error)
                part()
                raise SystemExit(1) from None  # rank 0 tells it
            if outcome.status == "stopped":
                return


def _said(spec: TrialSpec) -> Path:
    """Where the first rank to fail says why."""
    return Path(spec.folder) / ".failure.json"


def data_here(spec: TrialSpec, place: Location, storage: Path) -> TrainingData:
    """The dataset of a trial for this process alone, without Ray. Raises DataError."""
    feed = spec.config.data.feed
    if feed == "resident":
        return read_shards(place)
    manifest = read_manifest(place)
    verify_once(place, manifest, storage / "verified")
    return (
        map_shards(place, manifest, storage / "mapped").open() if feed == "mmap" else StreamedDataset(place, manifest)
    )


def plain_device(plan: Plan) -> torch.device:
    """The GPU of this process when the runs ask for GPUs, else the CPU. Raises ConfigError when there is none."""
    if not any(t.run.resources.gpus_per_worker for t in plan.all_trials):
        return torch.device("cpu")
    device = default_device()
    if device.type != "cuda":
        raise ConfigError("resources.gpus_per_worker asks for GPUs, but torch sees none here; set it to 0 for the CPU")
    return device


def torchrun_rank() -> int | None:
    """This process's rank under torchrun, None outside of it."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ else None


def check_torchrun(plan: Plan) -> None:
    """Raises ConfigError when torchrun's processes are not as many as the runs ask for."""
    if torchrun_rank() is None:
        return
    for trial in plan.all_trials:
        need = trial.run.resources
        if not need.least_workers <= int(os.environ["WORLD_SIZE"]) <= need.workers:
            least = "" if need.min_workers is None else f", min_workers {need.min_workers}"
            raise ConfigError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, but resources.workers of {trial.label} is "
                f"{need.workers}{least}; they must agree, as each worker has its share of the batches"
            )


def needs_ray(plan: Plan) -> bool:
    """Whether something that is left to train asks for several workers."""
    return any(
        t.run.resources.workers > 1 for stage in pending_stages(plan) for t in stage.trials if result_of(t) is None
    )
