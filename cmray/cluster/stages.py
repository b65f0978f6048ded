"""Which trials are finished, which are next, and what may run at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmray.cluster.resources import hungriest_first
from cmray.cluster.spec import TrialSpec
from cmray.config.plan import Plan, Trial
from cmray.core.errors import CheckpointError
from cmray.engine.checkpoint import checkpoints, newest_checkpoint
from cmray.engine.remote import store_of
from cmray.engine.result import read_result
from cmray.stopping import StoppingConfig
from cmray.tracking.decisions import read_decisions, stop_of
from cmray.tracking.records import Decision, Result


def result_of(trial: Trial) -> Result | None:
    """The result of a finished trial whose last checkpoint is still there."""
    return read_result(trial.folder)


def final_checkpoint(trial: Trial) -> Path | None:
    """Where the finished trial's weights are."""
    result = result_of(trial)
    return trial.folder / "checkpoints" / result.checkpoint if result else None


def resumes_at(trial: Trial) -> int:
    """The step an unfinished trial goes on from, at its newest undamaged checkpoint; 0 without one."""
    saved = trial.folder / "checkpoints"
    if store_of(saved) is not None:  # of a store's, only the manifests are here, and a manifest means a whole one
        return max((facts.step for facts, _ in checkpoints(saved)), default=0)
    found = newest_checkpoint(saved, lambda _: None)
    return found[0].step if found else 0


def decisions_of(trial: Trial, rule: StoppingConfig | None) -> list[Decision]:
    """What was decided about the trial by this very rule; what another one said does not count."""
    if rule is None:
        return []
    same = rule.model_dump(mode="json")
    return [d for d in read_decisions(trial.folder) if d.rule == same]


def stopped(plan: Plan, trial: Trial) -> Decision | None:
    """Why an unfinished trial is not trained further: the plan's stopping rule has ended it. None when it may go on."""
    if trial.role != "trial" or result_of(trial) is not None:
        return None
    return stop_of(decisions_of(trial, plan.config.stopping))


def is_over(plan: Plan, trial: Trial) -> bool:
    """Whether there is nothing left to train: it is finished, or a stopping rule has ended it."""
    return result_of(trial) is not None or stopped(plan, trial) is not None


@dataclass(frozen=True)
class Stage:
    """Trials that do not wait for each other."""

    title: str
    trials: tuple[Trial, ...]


def pending_stages(plan: Plan) -> list[Stage]:
    """Trials that are not over, teachers before those who learn from them. The others need no teacher any more."""
    todo = [t for t in plan.trials if not is_over(plan, t)]
    depth: dict[str, tuple[int, Trial]] = {}

    def need(trial: Trial) -> int:
        if result_of(trial) is not None:
            return 0
        level = need(trial.teacher) + 1 if trial.teacher is not None else 1
        if trial.role == "teacher":
            depth[str(trial.folder)] = (level, trial)
        return level

    for trial in todo:
        need(trial)
    if not todo and plan.config.evaluate is not None:  # the results stage measures teachers too
        for teacher in plan.teachers:
            need(teacher)
    stages = []
    for level in sorted({level for level, _ in depth.values()}):
        teachers = tuple(t for at, t in depth.values() if at == level)
        stages.append(Stage("teacher" if len(teachers) == 1 else "teachers", teachers))
    if todo:
        stages.append(Stage("trials" if plan.config.panels else "the run", tuple(todo)))
    return stages


def spec_of(trial: Trial) -> TrialSpec:
    """What the worker gets. Raises CheckpointError when the teacher is not there."""
    teacher = trial.teacher_checkpoint
    if trial.teacher is not None:
        teacher = final_checkpoint(trial.teacher)
        if teacher is None:
            raise CheckpointError(f"the teacher {trial.teacher.experiment}/{trial.teacher.name} did not finish")
    run, folder = trial.run.model_dump(mode="json"), str(trial.folder)
    return TrialSpec(trial.name, run, folder, str(teacher) if teacher else None, store_of(trial.folder))


def trials_by_data(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Trials grouped by the dataset they read, and how."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(f"{trial.data.digest} {trial.run.data.feed}", []).append(trial)
    return groups


def longest_first(trials: Sequence[Trial]) -> list[Trial]:
    """Those that take most of the machine first, then by the network passes they take, most first: no core waits long
    for the last of them."""

    def passes(trial: Trial) -> float:
        run = trial.run
        backward = 2  # takes about two forwards
        return run.train.steps * run.train.batch_size * (1 + backward + run.objective.frozen_forwards)

    return sorted(trials, key=lambda trial: (*hungriest_first(trial.run.resources), -passes(trial)))
