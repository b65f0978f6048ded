"""`cmray sweep` and `cmray train`: everything an experiment file stands for, and only what is missing of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmray.cluster.at_hand import for_nodes
from cmray.cluster.autoscale import at_most, room_for_pool, wait_for_room
from cmray.cluster.budget import Budget, OutOfTime, Timed
from cmray.cluster.connect import connected, local_capacity
from cmray.cluster.follow import Follower
from cmray.cluster.mirror import Mirror
from cmray.cluster.observer import Observer
from cmray.cluster.resources import Capacity, check_fits, max_concurrent
from cmray.cluster.results_stage import ResultsStage
from cmray.cluster.stages import (
    Stage,
    decisions_of,
    is_over,
    longest_first,
    pending_stages,
    result_of,
    spec_of,
    trials_by_data,
)
from cmray.cluster.stopping import Stopper
from cmray.config.data_facts import DataFacts
from cmray.config.plan import Plan, Trial
from cmray.core.errors import DataError
from cmray.core.files import disk_full, write_atomic
from cmray.datasets import datasets
from cmray.datasets.manifest import MANIFEST, read_manifest, verify_shards
from cmray.datasets.whole import load_whole, write_shards
from cmray.engine.loop import write_config
from cmray.engine.remote import fetch_folder, offer_folder
from cmray.engine.remote_sync import held, refresh
from cmray.engine.stop import clear_stop
from cmray.report.build import write_report
from cmray.report.load import load_experiment
from cmray.tracking.base import Tracker
from cmray.tracking.decisions import in_words, write_decisions
from cmray.tracking.records import ExperimentRecord

#: Parquet shards of a dataset that cmray prepares by itself
SHARDS = 4


@dataclass(frozen=True)
class Outcome:
    record: ExperimentRecord
    files: dict[str, Path]  # of the report, by name
    trained: int
    failed: int
    measured: int
    stopped: int = 0  # by the stopping rule, now or earlier
    stopped_now: int = 0
    #: what a sweep whose time was up has left: labels of trials, "evaluation"; empty when all is done
    left: tuple[str, ...] = ()
    #: names of the trials that this sweep was about; the record may hold panels of earlier ones
    asked: frozenset[str] = frozenset()


class Sweep:
    """One pass over a plan, on Ray.

    Args:
        plan: from `plan_experiment`.
        storage: the storage folder.
        address: of a running Ray cluster, None for Ray on this machine.
        limit: most trials at once; None for as many as fit.
        budget: the wall-clock of this pass; when it is over, running trials save a checkpoint and stop.
    """

    def __init__(
        self,
        plan: Plan,
        storage: Path,
        address: str | None,
        tracker: Tracker,
        observer: Observer,
        limit: int | None = None,
        budget: Budget | None = None,
    ):
        self.plan, self.storage, self.address, self.limit = plan, storage, address, limit
        self.observer = observer
        self.mirror = Mirror(tracker)
        evaluation = plan.config.evaluate
        self.budget = budget or Budget()
        self._watched = Timed(observer, self.budget)
        self.results = ResultsStage(plan, evaluation, storage, self._watched) if evaluation else None
        self._follower = Follower(observer, self.mirror, None, self.budget)
        self._experiments = {t.experiment for t in (*plan.all_trials, *plan.others)} | {plan.config.name}
        self._exchange: Callable[[], None] = lambda: None
        refresh(storage, self._experiments)  # where the storage is in an object store, what it has
        for facts in {t.data.digest: t.data for t in plan.all_trials}.values():
            if facts.folder.folder is not None:
                fetch_folder(facts.folder.folder, MANIFEST)

    def check(self, room: bool = True) -> None:
        """What can be known before anything starts. Raises ConfigError.

        Args:
            room: whether every trial must fit, which needs a visit to the cluster.
        """
        if not room:
            pass
        elif self.address is None:
            self._check_capacity(local_capacity())
        else:  # a first, short visit, before anything is written
            with connected(self.address) as capacity:
                self._check_capacity(capacity)
        self.check_data()
        if self.results is not None:
            self.results.check()

    def check_data(self) -> None:
        """Shards that are missing or of another size. Raises DataError."""
        for facts in {t.data.digest: t.data for t in self.plan.all_trials}.values():
            if facts.prepared:
                verify_shards(facts.folder, read_manifest(facts.folder), rehash=False)

    def _check_capacity(self, capacity: Capacity) -> None:
        pending = [trial for trial in self.plan.all_trials if not is_over(self.plan, trial)]
        most = at_most(capacity, [trial.run.resources for trial in pending])
        for trial in pending:
            check_fits(trial.run.resources, most, f"{trial.experiment}/{trial.name}")

    def run(self) -> Outcome:
        """Does what is missing. Raises CmrayError for what the user can mend; Ctrl-C leaves nothing running."""
        try:
            return self._run()
        except OSError as error:
            raise disk_full(self.storage, error) or error from None

    def _run(self) -> Outcome:
        plan = self.plan
        teachers = [t.folder.parent for t in plan.teachers if result_of(t) is None]
        warn = self.observer.warn
        with held(self.storage, [plan.folder, *teachers], self._experiments, warn) as self._exchange:
            write_atomic(plan.folder / "experiment.json", json.dumps(_plan_record(plan), indent=1))
            for trial in plan.all_trials:
                if result_of(trial) is None:
                    write_config(trial.folder, trial.run)
            shutil.rmtree(plan.folder / ".ray", ignore_errors=True)  # what a killed sweep left of Ray's bookkeeping
            record = load_experiment(self.storage, plan.config.name)
            self.mirror.open(record, plan.config.model_dump(mode="json"), self.storage)
            try:
                if plan.config.stopping is not None:
                    self._catch_up()
                stages = pending_stages(plan)
                if stages or (self.results is not None and not self.results.complete()):
                    try:
                        self.work(stages)
                    except OutOfTime:
                        self.observer.message("Time is up")
                outcome = self._report()
                self.mirror.results(outcome.record, outcome.files, self.storage)
                self.mirror.close("failed" if outcome.failed else "killed" if outcome.left else "finished")
            except BaseException:
                self.mirror.close("killed")
                raise
        return outcome

    def _catch_up(self) -> None:
        self._follower.stopper = Stopper(self.plan)
        for trial, decision in self._follower.stopper.catch_up():
            clear_stop(trial.folder)  # it does not run
            self._follower.stopped += 1
            self.observer.message(f"{trial.label} was stopped {in_words(decision)}")

    def work(self, stages: Sequence[Stage]) -> None:
        """Trains the stages and makes the results, on Ray. Raises OutOfTime when the budget is over before the end."""
        trained = [trial for stage in stages for trial in stage.trials]
        sizes = {t.data.digest: t.data.nbytes for t in trained if t.run.data.feed == "resident"}
        where = f"at {self.address}" if self.address else "on this machine; it stops when the sweep ends"
        self.observer.message(f"Ray {where}")
        with connected(self.address, sum(sizes.values())) as capacity:
            self._check_capacity(capacity)
            self.prepare_data()
            self._train(stages, capacity)
            if self.results is not None:
                self._on_pool(self.results, capacity)

    def prepare_data(self) -> None:
        """Prepares the datasets that cmray knows by name, unless they are there."""
        for facts in {t.data.digest: t.data for t in self.plan.all_trials}.values():
            if not facts.prepared:
                prepare_named(facts, self.observer)
            if facts.folder.folder is not None:
                offer_folder(facts.folder.folder, MANIFEST)

    def _train(self, stages: Sequence[Stage], capacity: Capacity) -> None:
        import ray

        from cmray.cluster.data import describe, put_training_data
        from cmray.cluster.tune import Tuning

        references: dict[str, ray.ObjectRef] = {}
        scratch = self.plan.folder / ".ray"
        tuning = Tuning(capacity, self.limit, scratch, lambda: not self.budget.over)
        for stage in stages:
            for key, trials in trials_by_data(stage.trials).items():
                self._check_time()
                capacity = wait_for_room(capacity, [t.run.resources for t in trials], self.limit, self._watched)
                facts, feed = trials[0].data, trials[0].run.data
                if key not in references:
                    self.observer.message(describe(feed, facts.name, facts.count, facts.nbytes, on_ray=True))
                    references[key] = put_training_data(for_nodes(facts.folder), feed, self.storage)
                ready = self.ready(trials)
                if ready:
                    specs = [spec_of(t) for t in longest_first(ready)]
                    at_once = max_concurrent([t.run.resources for t in ready], capacity, self.limit)
                    self.follow(stage.title, ready, lambda s=specs, r=references[key]: tuning.run(s, r), at_once)
        self._check_time()

    def _check_time(self) -> None:
        if self.budget.over:
            raise OutOfTime

    def ready(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those whose teacher is there; the others fail, saying so."""
        out = []
        for trial in trials:
            if trial.teacher is None or result_of(trial.teacher) is not None:
                (trial.folder / "error.txt").unlink(missing_ok=True)
                clear_stop(trial.folder)
                # what another rule decided is not true of the trial any more
                write_decisions(trial.folder, decisions_of(trial, self.plan.config.stopping))
                out.append(trial)
            else:
                write_atomic(trial.folder / "error.txt", f"its teacher {trial.teacher.name} failed\n")
                self._follower.ended(trial)
        return out

    def follow(self, title: str, trials: Sequence[Trial], work: Callable[[], None], concurrency: int) -> None:
        """Runs `work`, which trains `trials`, and passes on what their event files say meanwhile."""

        def exchanged() -> None:
            self._exchange()  # trials must not find what was taken back, such as a request to stop
            work()
            self._exchange()  # and their last words must be here before they are read

        self._follower.follow(title, trials, exchanged, concurrency)

    def _on_pool(self, results: ResultsStage, capacity: Capacity) -> None:
        from cmray.cluster.evaluate import EvaluatorPool

        on_gpus = any(trial.run.resources.gpus_per_worker for trial in self.plan.all_trials)
        capacity = room_for_pool(capacity, 1, on_gpus, self._watched)
        gpus = 1.0 if capacity.gpus >= 1 else 0.0
        size = int(max(1, min(capacity.gpus or capacity.free_cpus, capacity.free_cpus)))
        pool = EvaluatorPool(size, cpus=1, gpus=gpus)
        try:
            results.run(pool, f"on {size} actor{'s' if size > 1 else ''}")
        finally:
            pool.close()

    def _report(self) -> Outcome:
        record = load_experiment(self.storage, self.plan.config.name)
        files = write_report(record, self.plan.folder / "report")
        samples = self.plan.folder / "samples" / "samples.png"
        if samples.is_file():
            files["samples.png"] = samples
        asked = frozenset(trial.name for trial in self.plan.all_trials)
        failed, stopped = (sum(t.status == s and t.name in asked for t in record.trials) for s in ("failed", "stopped"))
        left: list[str] = []
        if self.budget.over:
            pending = [t for stage in pending_stages(self.plan) for t in stage.trials]
            left = [t.label for t in pending if not (t.folder / "error.txt").is_file()]
            if self.results is not None and (left or not self.results.complete()):
                left.append("evaluation")
        trained = self._follower.trained
        now = self._follower.stopped
        measured = self.results.measured if self.results else 0
        return Outcome(record, files, trained, failed, measured, stopped, now, tuple(left), asked)


def prepare_named(facts: DataFacts, observer: Observer) -> None:
    """Writes the shards of a dataset that cmray knows by name; another process may have been quicker."""
    folder = facts.folder.folder
    if folder is None or folder.is_dir():
        return
    observer.message(f"Preparing {facts.name}: {facts.count:,} images in {SHARDS} Parquet shards under {facts.folder}")
    try:
        write_shards(load_whole(datasets.parse(facts.name)), folder, SHARDS)
    except DataError:
        read_manifest(facts.folder)  # raises, unless another process was quicker


def _plan_record(plan: Plan) -> dict[str, Any]:
    evaluation = plan.config.evaluate
    curve = next((t.run.curve for t in plan.all_trials if t.run.curve), None)
    metric = evaluation.metric if evaluation else curve.metric_name if curve else "fd/digits"
    return {
        "name": plan.config.name,
        "description": plan.config.description,
        "x_axis": plan.config.report.x,
        "metric": metric,
        "num_samples": evaluation.num_samples if evaluation else None,
        "trials": [
            {
                "name": t.name,
                "label": t.label,
                "role": t.role,
                "panels": list(t.panels),
                "objective": t.run.objective.name,
                "experiment": t.experiment,
                "trained_in_features_of": t.run.objective.features,
            }
            for t in (*plan.all_trials, *plan.others)
        ],
    }
