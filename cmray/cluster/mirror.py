"""Keeps a tracker in step with an experiment's records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmray.cluster.best import best_sampler, served_model
from cmray.cluster.record_tables import draw_searches, evaluations_table, search_table, total_cost, values_first
from cmray.core.errors import DataError
from cmray.datasets.manifest import read_manifest
from cmray.engine.versions import git_revision, versions
from cmray.report.tables import fd_table
from cmray.tracking.base import RunEnd, Tracker
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
            # training anew gives new curves, and a run of their own
            key = trial.name if trial.attempt == 1 else f"{trial.name} attempt {trial.attempt}"
            self._keys[trial.name] = key
            tracker.open_run(
                key,
                trial.label,
                parent_key=PARENT,
                params=trial.config,
                tags={
                    **_software(trial.result),
                    "cmray.role": trial.role,
                    "cmray.panels": ", ".join(trial.panels),
                    "cmray.trial": f"{trial.experiment}/{trial.name}",
                },
            )
            self._open.add(key)
            tracker.log_dict(key, trial.config, "config.yaml")
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
            key = self._keys[trial.name]
            tracker.sync_events(key, trial.events)
            self._dataset(trial, storage)
            step = trial.result.steps if trial.result else 0
            for e in trial.evaluations:
                if e.provenance.n == record.num_samples:  # one name, one protocol; all others are files
                    tracker.log_metrics(key, {_metric_of(e): e.value}, step, e.time)
                tracker.log_dict(key, e.model_dump(mode="json"), f"evaluations/{e.key}.json")
            if trial.evaluations:
                tracker.log_table(key, evaluations_table(trial, record.num_samples), "evaluations.json")
            self._searches(record, trial)
            tracker.log_metrics(key, _named(trial.cost), step, _last_time(trial))
            if trial.error:
                tracker.log_text(key, trial.error, "error.txt")
            grid = record.folder / "samples" / f"{trial.name}.png"
            if grid.is_file():
                tracker.log_artifact(key, grid, "samples")
            end: dict[str, RunEnd] = {"finished": "finished", "failed": "failed"}
            tracker.close_run(key, end.get(trial.status, "killed"))
            self._open.discard(key)
        self._best(record)
        tracker.log_metrics(PARENT, _named(total_cost(record)), 0, max(map(_last_time, record.trials), default=0.0))
        tracker.log_table(PARENT, values_first(fd_table(record)), "table.json")
        for path in files.values():
            tracker.log_artifact(PARENT, path, "samples" if path.parent.name == "samples" else "report")

    def _searches(self, record: ExperimentRecord, trial: TrialRecord) -> None:
        """Every point of the trial's searches: as files, as a table and as a picture."""
        key = self._keys[trial.name]
        for s in trial.searches:
            self.tracker.log_dict(key, s.model_dump(mode="json"), f"searches/{s.key}.json")
        if not trial.searches:
            return
        self.tracker.log_table(key, search_table(trial), "search.json")
        picture = draw_searches(record, trial)
        if picture is not None:
            self.tracker.log_artifact(key, picture, "searches")

    def _best(self, record: ExperimentRecord) -> None:
        """The best sampler, as a number of the parent and as a model in the registry."""
        found = best_sampler(record)
        if found is None:
            return
        trial, evaluation = found
        if evaluation.provenance.n == record.num_samples:
            name = f"best/{record.metric}"
            self.tracker.log_metrics(PARENT, {name: evaluation.value}, 0, evaluation.time)
        model = served_model(record, trial, evaluation, _metric_of(evaluation))
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
    found = versions() if result is None else result.versions
    return {
        "cmray.git": git,
        "mlflow.source.name": f"cmray {found.get('cmray', '')}".strip(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.removesuffix("+changes"),
        **{f"cmray.version.{k}": v for k, v in found.items()},
    }


def _named(cost: Mapping[str, float]) -> dict[str, float]:
    return {f"cost/{name}": value for name, value in cost.items()}


def _last_time(trial: TrialRecord) -> float:
    """When the trial's newest record was made, in seconds since the epoch; 0 before the first one."""
    records = (*trial.events, *trial.evaluations, *trial.searches)
    return max((record.time for record in records), default=0.0)


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
