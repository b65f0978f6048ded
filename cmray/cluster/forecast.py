"""How long a sweep will take on this machine, from a few measured passes of each network. Rough: within a third."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cmray.cluster.connect import local_capacity
from cmray.cluster.resources import max_concurrent
from cmray.cluster.stages import is_over, pending_stages, resumes_at
from cmray.config.plan import Plan, Trial
from cmray.engine.cost import all_searches, evaluations
from cmray.engine.estimate import Speed, speed_of

#: what takes its time beside the steps and the samples, in seconds on two cores: Ray and the dataset, a stage of
#: one-worker trials, a run with several workers, the actors that evaluate, the report
START, TRIALS, DDP, RESULTS = 12.0, 10.0, 18.0, 10.0


@dataclass(frozen=True)
class Forecast:
    """Seconds of each unfinished trial alone, by its folder, and of the sweep. None where that cannot be told."""

    trials: dict[str, float | None]
    total: float | None


def forecast(plan: Plan, limit: int | None, here: bool) -> Forecast:
    """What is left of a plan.

    Args:
        limit: most trials at once, None for as many as fit.
        here: whether it will run on this machine; of another one only the trials are told, at this one's speed.
    """
    speeds: dict[str, Speed | None] = {}
    seconds: dict[str, float | None] = {}
    for trial in plan.all_trials:
        if is_over(plan, trial):
            continue
        speed = _speed(trial, speeds)
        left = trial.run.train.steps - resumes_at(trial)
        seconds[str(trial.folder)] = None if speed is None else speed.step * left
    total: float | None = 0.0 if here else None
    capacity = local_capacity()
    for stage in pending_stages(plan):
        if total is None:
            break
        total = _add(total, _stage_seconds(stage.trials, seconds, limit))
    if total is not None and seconds:
        total = _add(total + START, _results_seconds(plan, speeds, capacity.free_cpus))
    return Forecast(seconds, total)


def needs_cost(plan: Plan, expected: Forecast) -> bool:
    """Whether something that is left to train wants GPUs and could not be timed, so that an estimate must do."""
    return any(
        expected.trials.get(str(t.folder), 0.0) is None and t.run.resources.gpus_per_worker for t in plan.all_trials
    )


def _speed(trial: Trial, speeds: dict[str, Speed | None]) -> Speed | None:
    run = trial.run
    key = repr((run.net, run.objective.frozen_forwards, run.train.batch_size, run.train.optimizer.name, run.resources))
    if key not in speeds:
        speeds[key] = speed_of(run, trial.data.shape, trial.data.num_classes)
    return speeds[key]


def _add(total: float, more: float | None) -> float | None:
    return None if more is None else total + more


def _stage_seconds(trials: Sequence[Trial], seconds: dict[str, float | None], limit: int | None) -> float | None:
    known = [s for t in trials if (s := seconds[str(t.folder)]) is not None]
    if len(known) < len(trials):
        return None
    capacity = local_capacity()
    # each takes its share of the machine: one part in as many as there could be of it
    shares = [s / max_concurrent([t.run.resources] * len(trials), capacity, limit) for s, t in
              zip(known, trials, strict=True)]  # fmt: skip
    start = DDP if any(t.run.resources.workers > 1 for t in trials) else TRIALS
    return start + max(sum(shares), max(known))


def _results_seconds(plan: Plan, speeds: dict[str, Speed | None], actors: float) -> float | None:
    """Sampling for the evaluations and searches of a plan that are still to come."""
    evaluation, search = plan.config.evaluate, plan.config.search
    if evaluation is None:
        return 0.0
    work = []
    for trial in plan.all_trials:
        speed = _speed(trial, speeds)
        if speed is None:
            return None
        taken, searched = evaluations(trial.run, evaluation, search)
        work.append((speed.image * taken, speed.image * searched))
    together = all_searches([s for _, s in work], search)
    return RESULTS + (sum(e for e, _ in work) + together) / max(1.0, actors)
