"""What the figures draw: lines over training with their bands, and names short enough for a plot."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cmray.tracking.records import Event, ExperimentRecord, TrialRecord

#: two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom; scipy takes half a second to import
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
#: from so many seeds on a band is the interval of their mean; below, two numbers are shown as what they are
_LEAST_FOR_T = 3
_JOIN = " · "


class Point(NamedTuple):
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One line of a plot: a trial, or the mean of those that differ in nothing but their seed."""

    trials: tuple[TrialRecord, ...]
    label: str
    points: tuple[Point, ...]
    band: str = ""  # what low and high of the points are

    @property
    def key(self) -> str:
        return key_of(self.trials[0])

    @property
    def last(self) -> float:
        return self.points[-1].y

    @property
    def status(self) -> str:
        """The trials' one status, else the statuses in words."""
        counts = {s: [t.status for t in self.trials].count(s) for s in dict.fromkeys(t.status for t in self.trials)}
        return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {s}" for s, n in counts.items())


def key_of(trial: TrialRecord) -> str:
    """Names a trial among those of several experiments, which may have one of the same content."""
    return f"{trial.experiment}/{trial.name}"


def panels_of(experiment: ExperimentRecord) -> dict[str, list[TrialRecord]]:
    """Trials by panel, in order of appearance; those in no panel come last under ''."""
    trials = [trial for trial in experiment.trials if trial.role == "trial"]
    names = dict.fromkeys(name for trial in trials for name in trial.panels)
    panels = {name: [trial for trial in trials if name in trial.panels] for name in names}
    loose = [trial for trial in trials if not trial.panels]
    return {**panels, "": loose} if loose else panels


def by_seed(experiment: ExperimentRecord, trials: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    """Trials in groups that differ in `seed` alone, their own or also their teacher's.

    A trial without a configuration stands alone, and so does the second of two with equal seeds.
    """
    teachers = [trial for trial in experiment.trials if trial.role == "teacher" and trial.config]
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        key = _without_seed(trial, teachers)
        seeds = [other.config["seed"] for other in groups.get(key, [])]
        if "seed" not in trial.config or trial.config["seed"] in seeds:
            key = key_of(trial)
        groups.setdefault(key, []).append(trial)
    return list(groups.values())


def _without_seed(trial: TrialRecord, teachers: Sequence[TrialRecord]) -> str:
    """The configuration as text; a teacher that is among `teachers` counts by what it is but for its seed."""
    identity = str((trial.config.get("teacher") or {}).get("identity") or "")
    # a trial's name ends in the beginning of its identity
    own = next((t for t in teachers if identity and identity.startswith(t.name.rpartition("-")[2])), None)
    if own is None:
        return config_without(trial, ["seed"])
    rest = config_without(trial, ["seed", "teacher.identity", "teacher.overrides.seed"])
    return rest + config_without(own, ["seed"])


def config_without(trial: TrialRecord, paths: Sequence[str]) -> str:
    """The trial's configuration as text that compares, without the fields at these dotted paths."""
    rest: dict[str, Any] = json.loads(json.dumps(trial.config, default=str))
    for path in paths:
        *parents, last = path.split(".")
        where: Any = rest
        for part in parents:
            where = where.get(part) if isinstance(where, dict) else None
        if isinstance(where, dict):
            where.pop(last, None)
    return json.dumps(rest, sort_keys=True)


def training_lines(experiment: ExperimentRecord, trials: Sequence[TrialRecord], metric: str, nfe: int) -> list[Line]:
    """A line for each group of seeds: `metric` at `nfe`, or at the trial's own NFE where it has only others.

    Over several seeds a point is their mean at a step that all of them reached, with the 95% t-interval of that mean
    from three seeds on and the range of two; seeds that have not finished are left out once one has.
    """
    lines = []
    for group in by_seed(experiment, trials):
        drawn = {key_of(trial): _own_points(experiment, trial, metric, nfe) for trial in group}
        members = [trial for trial in group if drawn[key_of(trial)][1]]
        if len(members) > 1:
            members = [trial for trial in members if trial.status == "finished"] or members
        label = group_label(group)
        own = next((drawn[key_of(t)][0] for t in members if drawn[key_of(t)][0] != nfe), None)
        if own is not None:
            label += f" ({own} NFE)"
        if len(members) > 1:
            points, band = _mean([drawn[key_of(trial)][1] for trial in members])
            of = f" of {len(group)}" if len(members) < len(group) else ""
            lines.append(Line(tuple(members), f"{label}{_JOIN}{len(members)}{of} seeds", tuple(points), band))
        else:
            points = drawn[key_of(members[0])][1] if members else []
            known = "95% interval of each point" if any(p.low is not None for p in points) else ""
            lines.append(Line(tuple(members or group), label, tuple(points), known))
    return lines


def group_label(group: Sequence[TrialRecord]) -> str:
    """What the labels of trials that differ in their seed have in common."""
    return (_JOIN.join(_common([trial.label for trial in group])) if len(group) > 1 else "") or group[0].label


def curve_metric(experiment: ExperimentRecord) -> str:
    """The metric that curves are drawn of: the experiment's own if any trial has it, else the first that one has."""
    found = dict.fromkeys(
        key.rpartition("@")[0]
        for trial in experiment.trials
        for event in trial.events
        if event.kind == "curve"
        for key in event.metrics
        if "@" in key
    )
    return experiment.metric if experiment.metric in found or not found else next(iter(found))


def short_names(labels: Sequence[str]) -> tuple[str, list[str]]:
    """What labels have in common, and what is left of each: `cd · N=9` and [`l1`, `l2`] of `cd · l1 · N=9`, ...

    Labels that would not be told apart, or of which nothing is left, stay whole.
    """
    common = _common(labels) if len(labels) > 1 else []
    short = [_JOIN.join(part for part in label.split(_JOIN) if part not in common) for label in labels]
    if not common or not all(short) or len(set(short)) < len(set(labels)):
        return "", list(labels)
    return _JOIN.join(common), short


def _common(labels: Sequence[str]) -> list[str]:
    """Parts that all labels have, in the order of the first."""
    return [part for part in labels[0].split(_JOIN) if all(part in label.split(_JOIN) for label in labels)]


def _own_points(experiment: ExperimentRecord, trial: TrialRecord, metric: str, nfe: int) -> tuple[int, list[Point]]:
    """The NFE that is drawn, and the finite points by x."""
    events = [event for event in trial.events if event.kind == "curve"]
    asked = f"{metric}@{nfe}"
    if not any(asked in event.metrics for event in events):
        others = sorted(
            int(tail)
            for event in events
            for head, _, tail in (key.rpartition("@") for key in event.metrics)
            if head == metric and tail.isdigit()
        )
        nfe = others[0] if others else nfe
    key = f"{metric}@{nfe}"
    points = [_point(experiment, event, key) for event in events if key in event.metrics]
    return nfe, sorted(point for point in points if math.isfinite(point.y))


def _point(experiment: ExperimentRecord, event: Event, key: str) -> Point:
    x = event.step if experiment.x_axis == "step" else event.nimg
    low, high = event.intervals.get(key, (None, None))
    return Point(x, event.metrics[key], low, high)


def _mean(members: Sequence[Sequence[Point]]) -> tuple[list[Point], str]:
    at = [{point.x: point.y for point in points} for points in members]
    shared = sorted(set(at[0]).intersection(*at[1:]))
    return [mean_point(x, [known[x] for known in at]) for x in shared], band_of(len(members))


def mean_point(x: float, values: Sequence[float]) -> Point:
    """The mean of one number a seed, with what `band_of` says."""
    mean = statistics.fmean(values)
    if len(values) < _LEAST_FOR_T:
        return Point(x, mean, min(values), max(values))
    half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Point(x, mean, mean - half, mean + half)


def band_of(seeds: int) -> str:
    """What the ends of a mean over so many seeds are, two or more."""
    return f"{'range' if seeds < _LEAST_FOR_T else '95% t-interval of the mean'} over {seeds} seeds"


def t95(degrees: int) -> float:
    """The two-sided 95% quantile of Student's t, to 0.3% (Cornish and Fisher's expansion beyond the table)."""
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
