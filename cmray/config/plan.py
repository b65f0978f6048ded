"""From an experiment file to the trials it stands for: expanded, checked against the data, named by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.config.checks import (
    Missing,
    check_against_data,
    check_extractor,
    check_identity,
    check_teacher_run,
    check_times,
    sigma_data,
    unless_missing,
)
from cmray.config.data_facts import DataFacts, facts_of, resolved_feed, usual_facts
from cmray.config.expand import constant_fields, expand, label_of
from cmray.config.experiment import RUN_FIELDS, ExperimentConfig
from cmray.config.identity import content_hash
from cmray.config.load import RawExperiment, load_raw, validated
from cmray.config.run import DataConfig, RunConfig
from cmray.config.stopping import checked
from cmray.core.errors import CmrayError, ConfigError, DataError, MissingDataError, nearest


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


def plan_experiment(
    path: Path,
    overrides: Sequence[str],
    storage: Path,
    only: Sequence[str] = (),
    overlays: Sequence[Path] = (),
    missing: Missing | None = None,
) -> Plan:
    """Reads, expands and checks an experiment file. Writes nothing.

    Args:
        only: panels to keep; empty keeps all.
        overlays: files merged over it, before the overrides.
        missing: is told of datasets and weights that are not here, which is no error then.

    Raises:
        CmrayError: anything that could not run, as one sentence in one line.
    """
    try:
        return _plan(load_raw(path, overrides, overlays), path, storage, only, missing)
    except CmrayError as error:
        # names and paths of the file are quoted as they are, and may hold line ends
        raise type(error)("\\n".join(str(error).splitlines())) from None


def _plan(raw: RawExperiment, path: Path, storage: Path, only: Sequence[str], missing: Missing | None) -> Plan:
    if "theory" in raw.values:
        raise ConfigError(f"{path} is a theory file, which trains nothing; run: cmray theory {path}")
    planner = _Planner(storage, missing=missing)
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
                    with unless_missing(missing):
                        check_extractor(metric.extractor, trial.data, field)
                except CmrayError as error:
                    raise type(error)(f"{raw.path}: {error}") from None
        check_times(config, raw.path)
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


def plan_teacher(
    path: Path,
    overrides: Mapping[str, Any],
    storage: Path,
    above: tuple[str, ...] = (),
    missing: Missing | None = None,
) -> Trial:
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
    return _Planner(storage, above, missing).trial(base, raw, config.name, "teacher", context="teacher")


class _Planner:
    """Resolves runs against datasets and teachers, each looked at once."""

    def __init__(self, storage: Path, above: tuple[str, ...] = (), missing: Missing | None = None):
        self.storage, self._missing = storage, missing
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
            check_against_data(run, facts, self._missing)
            data = resolved_feed(run.data, facts)
        except CmrayError as error:
            raise type(error)(f"{raw.path}: {error}{note}") from None
        noise = run.noise.model_copy(update={"sigma_data": sigma_data(run, facts)})
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
                self._facts[key] = self._facts_of(config)
            except CmrayError as error:
                raise type(error)(f"data.{'name' if config.name else 'path'}: {error}") from None
        facts = self._facts[key]
        if config.digest not in (None, facts.digest):
            raise DataError(f"data.digest is {config.digest}, but {facts.folder} holds {facts.digest}")
        return facts

    def _facts_of(self, config: DataConfig) -> DataFacts:
        try:
            return facts_of(config, self.storage)
        except MissingDataError:
            usual = usual_facts(config) if self._missing is not None else None
            if usual is None or self._missing is None:
                raise
            self._missing.datasets[str(usual.folder)] = usual.name
            return usual

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
            check_teacher_run(run, made.run, str(run.teacher.checkpoint), facts)
            check_identity(run, made.weights_sha256)
            return None, run.teacher.checkpoint, made.weights_sha256
        assert run.teacher.experiment is not None
        key = repr((run.teacher.experiment, run.teacher.overrides))
        if key not in self._teachers:
            if key in self._above:
                raise ConfigError(
                    f"teacher.experiment {run.teacher.experiment} goes in a circle: it needs itself as teacher"
                )
            self._teachers[key] = plan_teacher(
                run.teacher.experiment, run.teacher.overrides, self.storage, (*self._above, key), self._missing
            )
        teacher = self._teachers[key]
        if teacher.data.digest != facts.digest:
            raise ConfigError(
                f"teacher.experiment {run.teacher.experiment} trains on {teacher.data.name} "
                f"{list(teacher.data.shape)}, "
                f"but the data of this run is {facts.name} {list(facts.shape)}; both must use the same dataset"
            )
        check_teacher_run(run, teacher.run, str(run.teacher.experiment), facts)
        check_identity(run, teacher.hash)
        return teacher, None, teacher.hash


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
