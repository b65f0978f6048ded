"""Keeps a tracker in step with an experiment's records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmray.cluster.best import best_sampler, served_model
from cmray.cluster.record_tables import evaluations_table, total_cost, values_first
from cmray.core.errors import DataError
from cmray.core.plugins import used
from cmray.datasets.manifest import read_manifest
from cmray.engine.versions import git_revision, versions
from cmray.report.searches import PICTURE, search_points
from cmray.report.tables import fd_table
from cmray.tracking.base import RunEnd, Tracker
from cmray.tracking.decisions import in_words
from cmray.tracking.records import Evaluation, Event, ExperimentRecord, Result, TrialRecord

PARENT = "sweep"


class Mirror:
    """A parent run per experiment and a child run per trial, found again by their content on every sweep."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self._open: set[str] = set()
        self._keys: dict[str, str] = {}  # of runs, by trial name

    def open(self, record: ExperimentRecord, settings: Mapping[str, Any], storage: Path) -> None:
        """Finds or makes all runs. `settings` is the resolved experiment file."""
        tracker = self.tracker
        tracker.start_experiment(record.name, record.description)
        shown = {k: settings[k] for k in ("evaluate", "search", "report") if settings.get(k)}
        tracker.open_run(PARENT, record.name, params=shown, tags={**_software(), "cmray.role": "sweep"})
        self._open.add(PARENT)
        if settings:
            tracker.log_dict(PARENT, settings, "experiment.yaml")
        for trial in _begun(record):
            self._open_trial(trial, PARENT, storage)

    def _open_trial(self, trial: TrialRecord, parent: str | None, storage: Path) -> None:
        # training anew gives new curves, and a run of their own
        key = trial.name if trial.attempt == 1 else f"{trial.name} attempt {trial.attempt}"
        self._keys[trial.name] = key
        self.tracker.open_run(
            key,
            trial.label,
            parent_key=parent,
            params=trial.config,
            tags={
                **_software(trial.result),
                "cmray.role": trial.role,
                "cmray.panels": ", ".join(trial.panels),
                "cmray.trial": f"{trial.experiment}/{trial.name}",
            },
        )
        self._open.add(key)
        self.tracker.log_dict(key, trial.config, "config.yaml")
        self._dataset(trial, storage)

    def _dataset(self, trial: TrialRecord, storage: Path) -> None:
        data = trial.config.get("data") or {}
        folder = storage / "datasets" / data["name"] if data.get("name") else data.get("path") or "."
        try:
            manifest = read_manifest(folder)
        except DataError:  # not prepared yet; the next call finds it
            return
        self.tracker.log_dataset(
            self._keys[trial.name], manifest.name, manifest.digest[:32], str(folder), manifest.count
        )

    def events(self, trial: str, events: Sequence[Event]) -> None:
        self.tracker.sync_events(self._keys[trial], events)

    def results(self, record: ExperimentRecord, files: Mapping[str, Path], storage: Path) -> None:
        """Everything that is on disk; what the tracker has already is left alone."""
        tracker = self.tracker
        for trial in _begun(record):
            self._results_of(trial, record, storage)
        self._best(record)
        tracker.log_metrics(PARENT, _costs(total_cost(record)), 0, max(map(_last_time, record.trials), default=0.0))
        tracker.log_table(PARENT, values_first(fd_table(record)), "table.json")
        for path in files.values():
            tracker.log_artifact(PARENT, path, "samples" if path.parent.name == "samples" else "report")

    def model(self, record: ExperimentRecord, trial: TrialRecord, storage: Path) -> None:
        """What is on disk of one trial, to the run that a sweep made for it, or will find."""
        self.tracker.start_experiment(record.name, record.description)
        self._open_trial(trial, None, storage)
        self._results_of(trial, record, storage)

    def _results_of(self, trial: TrialRecord, record: ExperimentRecord, storage: Path) -> None:
        tracker, key = self.tracker, self._keys[trial.name]
        tracker.sync_events(key, trial.events)
        self._dataset(trial, storage)
        step = trial.result.steps if trial.result else 0
        for name, e in _named(trial.evaluations, record.num_samples):
            tracker.log_metrics(key, {name: e.value}, step, e.time)
            tracker.log_dict(key, e.model_dump(mode="json"), f"evaluations/{e.key}.json")
        if trial.evaluations:
            tracker.log_table(key, evaluations_table(trial, record.num_samples), "evaluations.json")
        tracker.log_metrics(key, _costs(trial.cost), step, _last_time(trial))
        for s in trial.searches:
            tracker.log_dict(key, s.model_dump(mode="json"), f"searches/{s.key}.json")
        if trial.searches:
            tracker.log_table(key, search_points(trial.searches), "searches/points.json")
        for picture, folder in (
            (trial.folder / "searches" / PICTURE, "searches"),
            (record.folder / "samples" / f"{trial.name}.png", "samples"),
        ):
            if picture.is_file():
                tracker.log_artifact(key, picture, folder)
        stopped = f"stopped {in_words(trial.stopped)}\n" if trial.stopped else None
        for text, file in ((trial.error, "error.txt"), (stopped, "stopped.txt")):
            if text:
                tracker.log_text(key, text, file)
            else:  # of an earlier sweep, after which the trial went on
                tracker.remove_file(key, file)
        end: dict[str, RunEnd] = {"finished": "finished", "failed": "failed"}  # a stopped one was killed, for MLflow
        tracker.close_run(key, end.get(trial.status, "killed"))
        self._open.discard(key)

    def _best(self, record: ExperimentRecord) -> None:
        """The best sampler, as a number of the parent and as a model in the registry."""
        found = best_sampler(record)
        if found is None:
            return
        trial, evaluation = found
        if evaluation.provenance.n == record.num_samples:
            name = f"best/{record.metric}"  # at the newest record's time: what is best now may have been measured early
            now = max(map(_last_time, record.trials), default=evaluation.time)
            self.tracker.log_metrics(PARENT, {name: evaluation.value}, 0, now)
        named = {e.key: name for name, e in _named(trial.evaluations, record.num_samples)}
        model = served_model(record, trial, evaluation, named[evaluation.key])
        self.tracker.register_model(self._keys[trial.name], model)

    def close(self, status: RunEnd) -> None:
        """Ends what is still open; a run that was interrupted is opened again by the next sweep."""
        for key in self._open - {PARENT}:
            self.tracker.close_run(key, "killed")
        if PARENT in self._open:
            self.tracker.close_run(PARENT, status)
        self._open.clear()
        self.tracker.close()


def _software(result: Result | None = None) -> dict[str, str]:
    """Tags: what a finished trial was trained with, else what is running now."""
    git = (git_revision() if result is None else result.git) or ""
    found = versions(used()) if result is None else result.versions
    return {
        "cmray.git": git,
        "mlflow.source.name": f"cmray {found.get('cmray', '')}".strip(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.removesuffix("+changes"),
        **{f"cmray.version.{k}": v for k, v in found.items()},
    }


def _costs(cost: Mapping[str, float]) -> dict[str, float]:
    return {f"cost/{name}": value for name, value in cost.items()}


def _last_time(trial: TrialRecord) -> float:
    """When the trial's newest record was made, in seconds since the epoch; 0 before the first one."""
    records = (*trial.events, *trial.evaluations, *trial.searches)
    return max((record.time for record in records), default=0.0)


def _named(evaluations: Sequence[Evaluation], num_samples: int | None) -> list[tuple[str, Evaluation]]:
    """A name for every number of a trial; one name is one protocol.

    The plain name is for the samples that the experiment reports; others say how many. Where numbers of one name differ
    in anything else (weights, reference, seeds, searched times), the first one measured keeps it.
    """
    named: dict[str, Evaluation] = {}
    for e in sorted(evaluations, key=lambda e: (e.time, e.key)):
        n = e.provenance.n
        name = _metric_of(e) + ("" if n == num_samples else f"/n_{n}")
        named[f"{name}/{e.key[:8]}" if name in named else name] = e
    return list(named.items())


def _metric_of(evaluation: Evaluation) -> str:
    """final/fd/digits@1, final/fd/digits@2/t_0.8, final/fd/digits@2/searched, final/fd/digits@35/dpmpp-2m."""
    p = evaluation.provenance
    name = f"final/{p.metric}@{p.nfe}"
    if p.searched:
        return f"{name}/searched"
    if p.sampler == "multistep":
        return f"{name}/t_{'_'.join(f'{t:.4g}' for t in p.times[1:])}"
    # those that a model of each kind is sampled with by default; others say so, with their options
    plain = ("one-step", "edm-heun", "progressive-distillation")
    return name if p.sampler in plain else f"{name}/{re.sub(r'[^A-Za-z0-9_.-]+', '_', p.sampler)}"


def _begun(record: ExperimentRecord) -> list[TrialRecord]:
    """The trials that a sweep has taken on; those of panels that nobody asked for have no configuration yet."""
    return [trial for trial in record.trials if trial.config]
