"""Read an experiment's records from its storage folder, as far as they have been written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from cmray.core.errors import CmrayError, StorageError, nearest
from cmray.tracking.decisions import read_decisions, stop_of
from cmray.tracking.events import read_events
from cmray.tracking.records import Evaluation, Event, ExperimentRecord, Record, Result, Search, Status, TrialRecord

R = TypeVar("R", bound=Record)

#: an experiment has a file for each trial, and the parser in C takes a tenth of the time
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UnknownExperimentError(CmrayError):
    """An experiment that the storage folder does not hold."""


def load_experiment(storage: Path, name: str) -> ExperimentRecord:
    """The records of <storage>/<name>, with every trial's status as of now.

    A trial is finished once result.json exists; else stopped when a stopping rule ended it, failed when it left
    error.txt, running when it has logged anything, else waiting. Safe to call while trials write: a torn last line of
    events.jsonl is skipped.

    Raises:
        UnknownExperimentError: no such experiment; the message names those there are.
        StorageError: a record that is not what cmray.tracking.records describes; the message names the file.
    """
    storage = Path(storage)
    plan_file = storage / name / "experiment.json"
    if not plan_file.is_file():
        existing = sorted(path.parent.name for path in storage.glob("*/experiment.json"))
        if not existing:
            other = "--storage or CMRAY_STORAGE names another folder"
            raise UnknownExperimentError(f"no experiment '{name}' in {storage}, which holds none; {other}")
        asked = Path(name).name.removesuffix(".yaml")  # its file's name is close to an experiment's
        raise UnknownExperimentError(f"no experiment '{name}' in {storage}; {nearest(asked, existing)}")
    plan = _json(plan_file)
    try:
        trials = [_load_trial(storage, entry) for entry in plan["trials"]]
        trials.sort(key=lambda trial: trial.role != "teacher")
        fields = {key: plan[key] for key in ("name", "description", "x_axis", "metric", "num_samples") if key in plan}
        return ExperimentRecord(**fields, folder=storage / name, trials=trials)
    except (KeyError, TypeError, ValidationError) as error:
        raise StorageError(f"{plan_file} is no experiment plan: {_first(error)}") from error


def _load_trial(storage: Path, entry: dict[str, Any]) -> TrialRecord:
    folder = storage / entry["experiment"] / entry["name"]
    events = _events(folder / "events.jsonl")
    result = read_record(folder / "result.json", Result) if (folder / "result.json").is_file() else None
    error_file = folder / "error.txt"
    stopped = stop_of(read_decisions(folder)) if result is None else None
    unfinished = result is None and stopped is None
    error = error_file.read_text(errors="replace") if error_file.is_file() and unfinished else None
    status: Status
    if result is not None:
        status = "finished"
    elif stopped is not None:
        status = "stopped"
    elif error is not None:
        status = "failed"
    else:
        status = "running" if events else "waiting"
    return TrialRecord(
        **entry,
        folder=folder,
        config=_config(folder / "config.yaml"),
        status=status,
        error=error,
        stopped=stopped,
        result=result,
        events=events,
        evaluations=[read_record(path, Evaluation) for path in sorted(folder.glob("evaluations/*.json"))],
        attempt=_attempt(folder / "attempt"),
        searches=[read_record(path, Search) for path in sorted(folder.glob("searches/*.json"))],
    )


def _attempt(path: Path) -> int:
    return int(path.read_text()) if path.is_file() else 1


def _events(path: Path) -> list[Event]:
    """Events by step. A resumed trial repeats the steps since its last checkpoint: the later line stands."""
    events = {(event.kind, event.step): event for event in read_events(path)}
    return sorted(events.values(), key=lambda event: event.step)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = yaml.load(path.read_text(), _LOADER)
    except yaml.YAMLError as error:
        raise StorageError(f"{path} is not YAML: {_first(error)}") from error
    return config if isinstance(config, dict) else {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise StorageError(f"{path} is not JSON: {error}") from error


def read_record(path: Path, kind: type[R]) -> R:
    """One record. Raises StorageError, which names the file, when it is no such record."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StorageError(f"{path} is no {kind.__name__}: {_first(error)}") from error


def _first(error: Exception) -> str:
    """One line for an error of many."""
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        return f"{'.'.join(str(part) for part in detail['loc']) or 'the file'}: {detail['msg']}"
    if isinstance(error, KeyError):
        return f"the field {error} is missing"
    return str(error).splitlines()[0]
