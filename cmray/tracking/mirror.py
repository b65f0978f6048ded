"""The tracker that mirrors records to a store of runs: what to send, what is there already, what waits.

Calls go through an Outbox, so a store that is away stops nothing, and each looks at what the store already has, so
that replaying all records of a finished sweep changes nothing. Called from one thread, the driver's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import posixpath
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import yaml

from cmray.tracking.base import RunEnd
from cmray.tracking.names import TAG_LENGTH, clean_name, flatten, metric_name
from cmray.tracking.outbox import Outbox
from cmray.tracking.records import Event

if TYPE_CHECKING:
    from pandas import DataFrame

    from cmray.tracking.served import ServedModel

SYNCED_TAG = "cmray.synced_step.train"
_UPLOADED_TAG = "cmray.artifacts"
_TABLES_TAG = "mlflow.loggedArtifacts"


class Point(NamedTuple):
    name: str
    value: float
    milliseconds: int  # since the epoch
    step: int


class Found(NamedTuple):
    """What a store knows of a run when it is opened."""

    id: str
    status: str  # "RUNNING", "FINISHED", ...
    tags: dict[str, str]
    params: set[str]
    metrics: set[str]


class RunStore(Protocol):
    """Where runs are kept. Every method but the first two may raise anything when the store is away."""

    def where(self) -> str: ...
    def ui_command(self) -> str: ...
    def probe(self) -> None: ...
    def open_experiment(self, name: str, tags: Mapping[str, str]) -> str: ...
    def open_run(self, experiment: str, key: str, name: str, tags: Mapping[str, str]) -> Found: ...
    def send(self, run: str, params: Mapping[str, str], tags: Mapping[str, str], points: Sequence[Point]) -> None: ...
    def history(self, run: str, metric: str) -> dict[int, float]: ...
    def upload(self, run: str, data: bytes, file: str) -> None: ...
    def remove(self, run: str, file: str) -> None: ...
    def add_dataset(self, run: str, name: str, digest: str, source: str, rows: int) -> None: ...
    def register(self, experiment: str, run: str, model: ServedModel) -> None: ...
    def end(self, run: str, status: str) -> None: ...


@dataclass
class _Spec:
    name: str
    parent_key: str | None
    params: dict[str, str]
    tags: dict[str, str]


@dataclass
class _Run:
    """What the store is known to have of one run."""

    id: str
    status: str
    tags: dict[str, str]
    #: metrics that had points when the run was opened and whose history was not read yet
    unread: set[str]
    points: dict[str, dict[int, float]] = field(default_factory=dict)
    uploaded: dict[str, str] = field(default_factory=dict)


class MirrorTracker:
    """A Tracker over a RunStore. `warn` gets one line when the store is away, and one for each kind it refuses."""

    def __init__(self, store: RunStore, warn: Callable[[str], None]) -> None:
        self._store = store
        self._outbox = Outbox(store.where(), store.probe, warn)
        self._experiment: tuple[str, dict[str, str]] | None = None
        self._experiment_id: str | None = None
        self._specs: dict[str, _Spec] = {}
        self._runs: dict[str, _Run] = {}
        self._pending: dict[str, list[Event]] = {}

    def warm_up(self) -> None:
        def quietly() -> None:
            with contextlib.suppress(Exception):  # the first action meets the same failure and reports it
                self._store.probe()

        threading.Thread(target=quietly, name="tracker-warm-up", daemon=True).start()

    def close(self) -> None:
        self._outbox.close()

    def ui_command(self) -> str | None:
        return self._store.ui_command()

    # Experiments and runs

    def start_experiment(self, name: str, description: str = "", tags: Mapping[str, str] | None = None) -> None:
        # The kind saves the UI's question whether these are runs of a language model's application.
        kept = {"mlflow.experimentKind": "custom_model_development", **(tags or {})}
        if description:
            kept["mlflow.note.content"] = description
        self._experiment, self._experiment_id = (name, kept), None
        self._outbox.do("the experiment", self._open_experiment)

    def _open_experiment(self) -> str:
        if self._experiment_id is None:
            if self._experiment is None:
                raise RuntimeError("open_run before start_experiment")
            self._experiment_id = self._store.open_experiment(*self._experiment)
        return self._experiment_id

    def open_run(
        self,
        key: str,
        name: str,
        *,
        parent_key: str | None = None,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> str | None:
        if parent_key is not None:
            self._check(parent_key)
        own = {clean_name(tag): str(value)[:TAG_LENGTH] for tag, value in tags.items()}
        self._specs[key] = _Spec(name, parent_key, flatten(params), own)
        self._runs.pop(key, None)
        self._outbox.do("a run", lambda: self._run(key))
        return self._runs[key].id if key in self._runs else None

    def _check(self, key: str) -> None:
        if key not in self._specs:
            raise KeyError(key)

    def _run(self, key: str) -> _Run:
        if key not in self._runs:
            spec, tags, experiment = self._specs[key], dict(self._specs[key].tags), self._open_experiment()
            if spec.parent_key is not None:
                tags["mlflow.parentRunId"] = self._run(spec.parent_key).id
            found = self._store.open_run(experiment, key, spec.name, tags)
            run = _Run(found.id, found.status, found.tags, found.metrics)
            run.uploaded = json.loads(found.tags.get(_UPLOADED_TAG, "{}"))
            # MLflow refuses to change a param, so only new ones are sent.
            self._send(run, {name: value for name, value in spec.params.items() if name not in found.params}, tags)
            self._runs[key] = run
        return self._runs[key]

    def _send(
        self, run: _Run, params: Mapping[str, str], tags: Mapping[str, str], points: Sequence[Point] = ()
    ) -> None:
        changed = {tag: value for tag, value in tags.items() if run.tags.get(tag) != value}
        if params or changed or points:
            self._store.send(run.id, params, changed, points)
        run.tags.update(changed)
        for point in points:
            run.points.setdefault(point.name, {})[point.step] = point.value

    def close_run(self, key: str, status: RunEnd) -> None:
        def end() -> None:
            run = self._run(key)
            if run.status != status.upper():  # a second end would move the run's end time
                self._store.end(run.id, status.upper())
                run.status = status.upper()

        self._check(key)
        self._outbox.do("the end of a run", end)

    # Metrics

    def sync_events(self, key: str, events: Sequence[Event]) -> None:
        self._check(key)
        self._pending.setdefault(key, []).extend(events)
        self._outbox.do("metrics", lambda: self._sync(key))

    def _sync(self, key: str) -> None:
        pending, count, run = self._pending[key], len(self._pending[key]), self._run(key)
        # A worker writes its train events in order of step, so one number tells what is there; curves come in any
        # order, and a driver killed between points and tag leaves more than the tag says: there the history tells.
        synced = int(run.tags.get(SYNCED_TAG, -1))
        points: dict[tuple[str, int], Point] = {}
        for event in pending:
            if event.kind == "train" and event.step <= synced:
                continue
            for name, value in event.metrics.items():
                point = Point(metric_name(name), value, int(event.time * 1000), event.step)
                if point.step not in self._known(run, point.name):
                    points.setdefault((point.name, point.step), point)
        last = max((event.step for event in pending if event.kind == "train"), default=-1)
        tags = {SYNCED_TAG: str(last)} if last > synced else {}
        self._send(run, {}, tags, list(points.values()))
        del pending[:count]

    def _known(self, run: _Run, name: str) -> dict[int, float]:
        """The points of a metric that the run has, by step."""
        known = run.points.setdefault(name, {})
        if name in run.unread:
            known.update(self._store.history(run.id, name))
            run.unread.remove(name)
        return known

    def log_metrics(self, key: str, values: Mapping[str, float], step: int, time: float) -> None:
        def send() -> None:
            run = self._run(key)
            points = [Point(metric_name(name), value, int(time * 1000), step) for name, value in values.items()]
            known = [self._known(run, point.name).get(step) for point in points]
            new = [point for point, old in zip(points, known, strict=True) if not _same(old, point.value)]
            self._send(run, {}, {}, new)

        self._check(key)
        self._outbox.do("metrics", send)

    # Artifacts

    def _put(self, key: str, file: str, content: Callable[[], bytes], table: bool = False) -> None:
        """Upload `content()` to the path `file` unless the run is known to have the same there."""

        def send() -> None:
            run, data = self._run(key), content()
            digest = hashlib.sha256(data).hexdigest()[:16]
            if run.uploaded.get(file) != digest:
                self._store.upload(run.id, data, file)
                run.uploaded[file] = digest
            tags = {_UPLOADED_TAG: _fitting(run.uploaded)}
            if table:  # makes the UI offer it under "Evaluation"
                tables = json.loads(run.tags.get(_TABLES_TAG, "[]"))
                entry = {"path": file, "type": "table"}
                tags[_TABLES_TAG] = json.dumps(tables if entry in tables else [*tables, entry])
            self._send(run, {}, tags)

        self._check(key)
        self._outbox.do("a file", send)

    def log_table(self, key: str, table: DataFrame, artifact_file: str) -> None:
        # MlflowClient.log_table appends to the table that is there, so a replay would double its rows.
        text = table.to_json(orient="split", index=False, date_format="iso", default_handler=str, double_precision=15)
        self._put(key, artifact_file, lambda: (text or "").encode(), table=True)

    def log_artifact(self, key: str, path: Path, folder: str | None = None) -> None:
        file = posixpath.join(folder or "", path.name)
        self._put(key, file, path.read_bytes)

    def log_text(self, key: str, text: str, artifact_file: str) -> None:
        self._put(key, artifact_file, text.encode)

    def log_dict(self, key: str, values: Mapping[str, Any], artifact_file: str) -> None:
        text = json.dumps(dict(values), indent=2, ensure_ascii=False, default=str)
        if artifact_file.endswith((".yaml", ".yml")):  # through JSON, as YAML refuses paths and tuples
            text = yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
        self.log_text(key, text, artifact_file)

    def remove_file(self, key: str, artifact_file: str) -> None:
        def remove() -> None:
            run = self._run(key)
            if artifact_file in run.uploaded:
                self._store.remove(run.id, artifact_file)
                del run.uploaded[artifact_file]
                self._send(run, {}, {_UPLOADED_TAG: _fitting(run.uploaded)})

        self._check(key)
        self._outbox.do("a file", remove)

    def register_model(self, key: str, model: ServedModel) -> None:
        self._check(key)
        self._outbox.do("a model", lambda: self._store.register(self._open_experiment(), self._run(key).id, model))

    def log_dataset(self, key: str, name: str, digest: str, source: str, rows: int) -> None:
        self._check(key)
        self._outbox.do("the dataset", lambda: self._store.add_dataset(self._run(key).id, name, digest, source, rows))


def _same(old: float | None, new: float) -> bool:
    return old is not None and (old == new or (math.isnan(old) and math.isnan(new)))


def _fitting(uploaded: Mapping[str, str]) -> str:
    """The tag that remembers uploads; those beyond a tag's length are forgotten and will be uploaded again."""
    kept = dict(uploaded)
    while len(text := json.dumps(kept, separators=(",", ":"))) > TAG_LENGTH:
        kept.popitem()
    return text
