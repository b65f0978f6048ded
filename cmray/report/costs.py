"""What an experiment has cost: training, measuring and searching, per trial and in all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from cmray.tracking.records import Evaluation, ExperimentRecord, Search, TrialRecord

TOTAL = "total"
_HOUR = 3600
_KILOWATT_HOUR = 3.6e6  # joules


def costs(experiment: ExperimentRecord) -> pd.DataFrame:
    """One row per trial, teachers first, and a last row `total`. Index `label`; NaN, or <NA>, where nothing tells.

    Columns: steps and images, trained so far (Int64); minutes, spent training on the clock, of finished trials, so that
    the total counts time that trials shared several times; gpu_hours, GPUs held times hours; cpu_hours, of all
    processes; evaluation_seconds and search_seconds, on the clock, time that several shared being counted once, with
    the one that was recorded first; energy_kwh, of the GPUs. Records of older versions tell nothing of gpu_hours,
    cpu_hours and energy_kwh. A total is over what is known, and missing only where nothing is.

    A teacher's training is counted here though several experiments may share it.
    """
    trials = experiment.trials
    evaluation = _seconds([trial.evaluations for trial in trials])
    search = _seconds([trial.searches for trial in trials])
    rows = [
        {"steps": (done := _trained(trial))[0], "images": done[1], **_training(trial),
         "evaluation_seconds": evaluation[i], "search_seconds": search[i]}
        for i, trial in enumerate(trials)
    ]  # fmt: skip
    names = [
        "steps",
        "images",
        "minutes",
        "gpu_hours",
        "cpu_hours",
        "evaluation_seconds",
        "search_seconds",
        "energy_kwh",
    ]
    frame = pd.DataFrame(rows, columns=pd.Index(names), index=pd.Index([t.label for t in trials], name="label"))
    frame = frame.astype({name: "Int64" if name in ("steps", "images") else "float64" for name in names})
    total = frame.sum(min_count=1).rename(TOTAL).to_frame().T.astype(frame.dtypes.to_dict())
    return pd.concat([frame, total]).rename_axis("label")


def _trained(trial: TrialRecord) -> tuple[int | None, int | None]:
    if trial.result:
        return trial.result.steps, trial.result.nimg
    return (trial.events[-1].step, trial.events[-1].nimg) if trial.events else (None, None)


def _training(trial: TrialRecord) -> dict[str, float]:
    result = trial.result
    return {
        "minutes": result.seconds / 60 if result else math.nan,
        "gpu_hours": _known(result and result.gpu_seconds) / _HOUR,
        "cpu_hours": _known(result and result.cpu_seconds) / _HOUR,
        "energy_kwh": _known(result and result.energy_joules) / _KILOWATT_HOUR,
    }


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _seconds(records: Sequence[Sequence[Evaluation] | Sequence[Search]]) -> list[float]:
    """Per trial the seconds on the clock that its records add; NaN for a trial without any.

    A record covers `seconds` up to its `time`. What is measured on one pool, or searched side by side, covers the same
    seconds, so each record counts for what those before it have left.
    """
    spans = [(one.time - one.seconds, one.time, trial) for trial, found in enumerate(records) for one in found]
    seconds = [math.nan if not found else 0.0 for found in records]
    spans.sort(key=lambda span: span[1])
    for (_, _, trial), added in zip(spans, _added((start, end) for start, end, _ in spans), strict=True):
        seconds[trial] += added
    return seconds


def _added(spans: Iterable[tuple[float, float]]) -> Iterable[float]:
    """The length that each interval adds to the union of those before it. They come by their ends."""
    union: list[tuple[float, float]] = []
    for start, end in spans:
        added, low = end - start, start
        while union and union[-1][1] > start:
            other_start, other_end = union.pop()
            added -= other_end - max(other_start, start)
            low = min(low, other_start)
        union.append((low, end))
        yield added
