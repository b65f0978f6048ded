"""One trial's records as the tables and pictures that MLflow compares runs by, and what an experiment took."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cmray.report.columns import times_label
from cmray.report.figures import search_figure
from cmray.tracking.records import Evaluation, ExperimentRecord, TrialRecord

#: costs that older records, or some machines, do not tell, and what every record of the same work has
_PART_OF = {
    "gpu_seconds": "train_seconds",
    "cpu_seconds": "train_seconds",
    "energy_joules": "train_seconds",
    "search_images": "search_seconds",
}


def evaluations_table(trial: TrialRecord, num_samples: int | None) -> pd.DataFrame:
    """One row per number. `measure` is the same text in all runs for what may be compared: group by it.

    Args:
        num_samples: of the experiment as it is now; rows of other n say so in `measure`.
    """
    rows = []
    for e in sorted(trial.evaluations, key=lambda e: (e.provenance.metric, e.provenance.nfe, e.provenance.searched)):
        p = e.provenance
        rows.append(
            {
                "measure": _measure(e, num_samples),
                "value": e.value,
                "low": e.low,
                "high": e.high,
                "metric": p.metric,
                "nfe": p.nfe,
                "sampler": p.sampler,
                "times": times_label(p.times),
                "searched": p.searched,
                "weights": p.weights,
                "n": p.n,
                "seed_blocks": p.seed_blocks,
                "seconds": e.seconds,
            }
        )
    return pd.DataFrame(rows)


def _measure(e: Evaluation, num_samples: int | None) -> str:
    """`fd/digits · 1 NFE`, `fd/digits · 2 NFE (80, 0.8)`, `fd/digits · 2 NFE searched, n=512`."""
    p = e.provenance
    how = " searched" if p.searched else f" ({times_label(p.times)})" if p.sampler == "multistep" else ""
    return f"{p.metric} · {p.nfe} NFE{how}{f', n={p.n}' if p.n != num_samples else ''}"


def values_first(frame: pd.DataFrame) -> pd.DataFrame:
    """The experiment's table with its values beside the labels, as MLflow begins to compare with these two columns."""
    first = ["label", *frame.attrs["values"]]
    return frame.reindex(columns=[*first, *(name for name in frame.columns if name not in first)])


def search_table(trial: TrialRecord) -> pd.DataFrame:
    """One row per evaluated point of all searches, in the order in which they were asked for."""
    rows = []
    for s in trial.searches:
        rounds = [number for number, count in enumerate(s.rounds or [len(s.points)], start=2) for _ in range(count)]
        for order, (point, time) in enumerate(zip(s.points, rounds, strict=True), start=1):
            rows.append(
                {
                    "sigma": point.sigma,  # first, then the value: the columns that MLflow begins to compare with
                    "value": point.value,
                    "search": f"{s.nfe} NFE, {s.mode}, n={s.provenance.n}",
                    "order": order,
                    "time": time,  # which of the noise levels was searched; the first is sigma_max
                    "error": point.error,
                    "tied": point.tied,
                    "confirmed": point.confirmed,
                    "chosen": point.sigma in s.times[time - 1 : time],
                    "metric": s.provenance.metric,
                }
            )
    return pd.DataFrame(rows)


def draw_searches(experiment: ExperimentRecord, trial: TrialRecord) -> Path | None:
    """searches/search.png and .svg in the trial's folder, drawn again when a search was added; None without points."""
    folder = trial.folder / "searches"
    picture = folder / "search.png"
    written = [path.stat().st_mtime for path in folder.glob("*.json")]
    if not picture.is_file() or picture.stat().st_mtime < max(written, default=0.0):
        search_figure(experiment.model_copy(update={"trials": [trial]}), folder)
    return picture if picture.is_file() else None


def total_cost(experiment: ExperimentRecord) -> dict[str, float]:
    """Sums over all trials, teachers included, of what every one that has a part of it told. Trials may have run at
    the same time, so that seconds add up to more than passed on the clock."""
    costs = [trial.cost for trial in experiment.trials]
    names = dict.fromkeys(name for cost in costs for name in cost)
    whole = [name for name in names if all(name in cost for cost in costs if _PART_OF.get(name, name) in cost)]
    return {name: sum(cost.get(name, 0.0) for cost in costs) for name in whole}
