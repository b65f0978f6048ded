"""From an experiment file to the trials it stands for: expanded, checked against the data, named by content."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.config.data_facts import DataFacts, facts_of, resolved_feed
from cmray.config.expand import constant_fields, expand, label_of
from cmray.config.experiment import RUN_FIELDS, ExperimentConfig
from cmray.config.identity import content_hash
from cmray.config.load import RawExperiment, load_raw, validated
from cmray.config.run import DataConfig, RunConfig
from cmray.config.stopping import checked
from cmray.core.errors import CmrayError, ConfigError, DataError, nearest
from cmray.metrics.extractors import Extractor, ExtractorConfig, extractors


@dataclass(frozen=True)
class Trial:
    """One training run with its place in the storage folder."""

    name: str  # "<objective>-<first 10 hex digits of the content hash>"
    hash: str
    label: str
    role: Literal["teacher", "trial"]
    experiment: str
    folder: Path
    run: RunConfig
    data: DataFacts
    panels: tuple[str, ...] = ()
    teacher: Trial | None = None
    teacher_checkpoint: Path | None = None
    #: dotted field -> value that this trial's panel set, for labels and messages
    varied: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """An experiment, resolved. `teachers` come before the trials that need them."""

    config: ExperimentConfig
    path: Path
    folder: Path
    teachers: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    #: trials of panels that were not asked for, with their teachers; they stay in the experiment's record
    others: tuple[Trial, ...] = ()

    @property
    def all_trials(self) -> tuple[Trial, ...]:
        """What this plan is about: the trials and all they learn from."""
        return (*self.teachers, *self.trials)


def plan_experiment(path: Path, overrides: Sequence[str], storage: Path, only: Sequence[str] = ()) -> Plan:
    """Reads, expands and checks an experiment file. Writes nothing.

    Args:
        only: panels to keep; empty keeps all.

    Raises:
        CmrayError: anything that could not run, as one sentence in one line.
    """
    try:
        return _plan(path, overrides, storage, only)
    except CmrayError as error:
        # names and paths of the file are quoted as they are, and may hold line ends
        raise type(error)("\\n".join(str(error).splitlines())) from None


def _plan(path: Path, overrides: Sequence[str], storage: Path, only: Sequence[str]) -> Plan:
    raw = load_raw(path, overrides)
    if "theory" in raw.values:
        raise ConfigError(f"{path} is a theory file, which trains nothing; run: cmray theory {path}")
    planner = _Planner(storage)
    config = validated(ExperimentConfig, raw.values, raw)
    for name in only:
        if name not in config.panels:
            raise ConfigError(f"--only {name}: {path} has no such panel; {nearest(name, config.panels)}")
    base = {key: value for key, value in raw.values.items() if key in RUN_FIELDS}
    found: dict[str, Trial] = {}
    if not config.panels:
        trial = planner.trial(base, raw, config.name, "trial", context="")
        found[trial.hash] = trial
    for panel_name, panel in config.panels.items():
        expanded = list(expand(base, panel, raw, panel_name))
        same = constant_fields([varied for _, varied in expanded])
        for values, varied in expanded:
            shown = ", ".join(f"{k}={v}" for k, v in varied.items())
            context = f"panel {panel_name}{': ' if shown else ''}{shown}"
            telling = {k: v for k, v in varied.items() if k not in same}
            trial = planner.trial(values, raw, config.name, "trial", context=context, varied=telling)
            known = found.get(trial.hash)
            panels = (*known.panels, panel_name) if known else (panel_name,)
            found[trial.hash] = replace(known or trial, panels=tuple(dict.fromkeys(panels)))
    trials = _distinct_labels(list(found.values()))
    if config.stopping is not None:
        try:
            config = config.model_copy(
                update={"stopping": checked(config.stopping, [(t.label, t.run) for t in trials])}
            )
        except ConfigError as error:
            raise ConfigError(f"{raw.path}: {error}") from None
    if config.evaluate is not None:
        for trial in trials:
            for i, metric in enumerate(config.evaluate.wanted):
                field = f"evaluate.metric{'s' if i else ''}"
                try:
                    _check_extractor(metric.extractor, trial.data, field)
                except ConfigError as error:
                    raise ConfigError(f"{raw.path}: {error}") from None
        _check_times(config, raw.path)
        if not any(t.run.objective.kind == "consistency" for t in trials):
            for field, given in (
                ("search", config.search is not None),
                ("evaluate.times", bool(config.evaluate.times)),
            ):
                if given:
                    raise ConfigError(
                        f"{raw.path}: {field} is about the sampling times of consistency models, but "
                        f"objective.name of every trial is {', '.join(sorted({t.run.objective.name for t in trials}))}"
                    )
        if len({t.data.digest for t in trials}) > 1:
            names = ", ".join(sorted({str(t.data.folder) for t in trials}))
            raise ConfigError(
                f"{raw.path}: evaluate measures against one dataset, but the panels train on several: {names}; make an "
                f"experiment of each"
            )
    chosen = [t for t in trials if not only or set(only) & set(t.panels)]
    teachers = _teachers_of(chosen)
    others = [t for t in (*_teachers_of(trials), *trials) if t not in chosen and t not in teachers]
    return Plan(config, path, storage / config.name, teachers, tuple(chosen), tuple(others))


def _teachers_of(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Each teacher once, a teacher's own teacher before it."""
    ordered: dict[str, Trial] = {}

    def visit(trial: Trial) -> None:
        if trial.teacher is not None:
            visit(trial.teacher)
            ordered.setdefault(str(trial.teacher.folder), trial.teacher)

    for trial in trials:
        visit(trial)
    return tuple(ordered.values())


def plan_teacher(path: Path, overrides: Mapping[str, Any], storage: Path, above: tuple[str, ...] = ()) -> Trial:
    """The single run of an experiment file without panels, in the folder of that experiment.

    Args:
        above: keys of the teachers that led here, so that a circle is noticed.
    """
    raw = load_raw(path)
    for key, value in overrides.items():
        raw.override(key, value, f"teacher.overrides {key}")
    config = validated(ExperimentConfig, raw.values, raw)
    if config.panels:
        raise ConfigError(f"{path}: a teacher is a single run, but this file has panels: {', '.join(config.panels)}")
    base = {key: value for key, value in raw.values.items() if key in RUN_FIELDS}
    return _Planner(storage, above).trial(base, raw, config.name, "teacher", context="teacher")


class _Planner:
    """Resolves runs against datasets and teachers, each looked at once."""

    def __init__(self, storage: Path, above: tuple[str, ...] = ()):
        self.storage = storage
        self._above = above
        self._facts: dict[tuple[str | None, str | None], DataFacts] = {}
        self._teachers: dict[str, Trial] = {}

    def trial(
        self,
        values: Mapping[str, Any],
        raw: RawExperiment,
        experiment: str,
        role: Literal["teacher", "trial"],
        context: str,
        varied: Mapping[str, Any] | None = None,
    ) -> Trial:
        run = validated(RunConfig, values, raw, context)
        note = f" [{context}]" if context else ""
        try:
            facts = self._data(run.data)
            teacher, checkpoint, teacher_identity = self._teacher(run, facts)
            _check_against_data(run, facts)
            data = resolved_feed(run.data, facts)
        except CmrayError as error:
            raise type(error)(f"{raw.path}: {error}{note}") from None
        noise = run.noise.model_copy(update={"sigma_data": _sigma_data(run, facts)})
        update: dict[str, Any] = {"data": data, "noise": noise}
        if run.teacher is not None:
            # a teacher that the objective does not use must not give the trial another name
            used = run.objective.uses_teacher
            update["teacher"] = run.teacher.model_copy(update={"identity": teacher_identity}) if used else None
        run = run.model_copy(update=update)
        digest = content_hash(run)
        name = f"{run.objective.name}-{digest[:10]}"
        return Trial(
            name=name,
            hash=digest,
            label=label_of(run, varied or {}),
            role=role,
            experiment=experiment,
            folder=self.storage / experiment / name,
            run=run,
            data=facts,
            teacher=teacher,
            teacher_checkpoint=checkpoint,
            varied=dict(varied or {}),
        )

    def _data(self, config: DataConfig) -> DataFacts:
        key = (config.name, config.path)
        if key not in self._facts:
            try:
                self._facts[key] = facts_of(config, self.storage)
            except CmrayError as error:
                raise type(error)(f"data.{'name' if config.name else 'path'}: {error}") from None
        facts = self._facts[key]
        if config.digest not in (None, facts.digest):
            raise DataError(f"data.digest is {config.digest}, but {facts.folder} holds {facts.digest}")
        return facts

    def _teacher(self, run: RunConfig, facts: DataFacts) -> tuple[Trial | None, Path | None, str | None]:
        if run.teacher is None or not run.objective.uses_teacher:
            return None, None, None
        if run.teacher.checkpoint is not None:
            made = read_checkpoint_facts(run.teacher.checkpoint)
            if tuple(made.shape) != facts.shape:
                raise ConfigError(
                    f"teacher.checkpoint {run.teacher.checkpoint} makes images of shape {list(made.shape)} (C, H, W), "
                    f"but the data has {list(facts.shape)}"
                )
            _check_teacher_run(run, made.run, str(run.teacher.checkpoint), facts)
            _check_identity(run, made.weights_sha256)
            return None, run.teacher.checkpoint, made.weights_sha256
        assert run.teacher.experiment is not None
        key = repr((run.teacher.experiment, run.teacher.overrides))
        if key not in self._teachers:
            if key in self._above:
                raise ConfigError(
                    f"teacher.experiment {run.teacher.experiment} goes in a circle: it needs itself as teacher"
                )
            self._teachers[key] = plan_teacher(
                run.teacher.experiment, run.teacher.overrides, self.storage, (*self._above, key)
            )
        teacher = self._teachers[key]
        if teacher.data.digest != facts.digest:
            raise ConfigError(
                f"teacher.experiment {run.teacher.experiment} trains on {teacher.data.name} "
                f"{list(teacher.data.shape)}, "
                f"but the data of this run is {facts.name} {list(facts.shape)}; both must use the same dataset"
            )
        _check_teacher_run(run, teacher.run, str(run.teacher.experiment), facts)
        _check_identity(run, teacher.hash)
        return teacher, None, teacher.hash


def _check_identity(run: RunConfig, identity: str) -> None:
    assert run.teacher is not None
    if run.teacher.identity not in (None, identity):
        raise ConfigError(f"teacher.identity is {run.teacher.identity}, but the teacher's is {identity}")


def _sigma_data(run: RunConfig, facts: DataFacts) -> float:
    return run.noise.sigma_data or round(facts.std, 6)


def _check_teacher_run(run: RunConfig, teacher: RunConfig, shown: str, facts: DataFacts) -> None:
    if not teacher.objective.is_denoiser:
        raise ConfigError(f"teacher {shown} has objective.name {teacher.objective.name}; a teacher is a denoiser (edm)")
    if teacher.net.class_conditional and not run.net.class_conditional:
        raise ConfigError(
            f"net.class_conditional is false, but the teacher {shown} is class-conditional and needs the labels"
        )
    if run.objective.starts_from == "teacher" and run.net.architecture() != teacher.net.architecture():
        field = "init is teacher" if hasattr(run.objective, "init") else f"name is {run.objective.name}"
        raise ConfigError(
            f"objective.{field}, which needs the teacher's net, that of {shown}, but "
            f"{_differences(run.net.architecture(), teacher.net.architecture())}"
        )
    ours, theirs = _sigma_data(run, facts), _sigma_data(teacher, facts)
    scales = f"noise.sigma_data is {ours} and that of {shown} is {theirs}; objective.name {run.objective.name}"
    if run.objective.replaces_teacher and ours != theirs:
        raise ConfigError(f"{scales} makes the student the next teacher, so both must be the same")
    if run.objective.starts_from == "teacher" and abs(ours / theirs - 1) > 0.05:
        raise ConfigError(f"{scales} starts from the teacher's weights, which fit only their own scale (to 5%)")


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The fields by which a student's net is not its teacher's; the name alone when they are of two kinds."""
    keys = [key for key in ours if ours[key] != theirs.get(key)] if ours["name"] == theirs["name"] else ["name"]
    return ", ".join(f"net.{key} is {ours[key]} instead of {theirs[key]}" for key in keys)


def _check_against_data(run: RunConfig, facts: DataFacts) -> None:
    if run.noise.sigma_data is None and round(facts.std, 6) == 0:
        raise ConfigError(f"noise.sigma_data is the data's standard deviation, which is 0 for {facts.name}; give one")
    if run.net.class_conditional and not facts.num_classes:
        raise ConfigError(f"net.class_conditional is true, but the data {facts.name} has no labels")
    if run.curve is not None:
        _check_extractor(run.curve.extractor, facts, "curve.metric")
    if run.objective.features is not None:
        _check_extractor(run.objective.features, facts, "objective.distance.extractor")
    distance = getattr(run.objective, "distance", None)
    if distance is not None:
        try:
            distance.check(facts.shape)
        except (CmrayError, ValueError) as error:
            raise ConfigError(f"objective.distance: {error}") from None
    try:
        run.net.check(facts.shape)
    except ValueError as error:
        raise ConfigError(f"net: {error}") from None


@functools.cache
def _extractor(extractor: str) -> Extractor:
    """Of a name, or of name and options as JSON."""
    return extractors.parse(json.loads(extractor)).build(torch.device("cpu"))


def _check_extractor(extractor: str | ExtractorConfig, facts: DataFacts, field_path: str) -> None:
    name = extractor if isinstance(extractor, str) else extractor.name
    options = extractor if isinstance(extractor, str) else extractor.model_dump(mode="json")
    try:
        _extractor(json.dumps(options)).check(facts.shape)
    except CmrayError as error:
        raise ConfigError(f"{field_path} is {name}: {error}") from None


def _check_times(config: ExperimentConfig, path: Path) -> None:
    assert config.evaluate is not None
    for nfe, times in config.evaluate.times.items():
        if not all(config.noise.sigma_min < t <= config.noise.sigma_max for t in times):
            raise ConfigError(
                f"{path}: evaluate.times.{nfe} is {list(times)}; every time must be above noise.sigma_min "
                f"{config.noise.sigma_min} and at most noise.sigma_max {config.noise.sigma_max}"
            )


def _distinct_labels(trials: list[Trial]) -> list[Trial]:
    """Labels that tell trials apart: those that do not get the fields that vary, then the hash."""
    for attempt in (0, 1):
        labels = [t.label for t in trials]
        for i, trial in enumerate(trials):
            if labels.count(trial.label) > 1:
                own = [
                    f"{k.removeprefix('objective.')}={v}" for k, v in trial.varied.items() if k.startswith("objective.")
                ]
                tail = " · ".join(own) if attempt == 0 and own else trial.hash[:6]
                trials[i] = replace(trial, label=f"{trial.label} · {tail}")
    return trials
