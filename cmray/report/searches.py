"""What the searches of one model saw: a picture of the metric against the noise level, and all points as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmray.report.load import read_record
from cmray.tracking.records import ExperimentRecord, Search, TrialRecord

if TYPE_CHECKING:
    from pandas import DataFrame

PICTURE = "search.png"


def search_picture(folder: Path, label: str) -> Path | None:
    """<folder>/searches/search.png (and .svg) of a model's records, drawn when one is newer than the picture.

    Every evaluated point is in it, with its place in the order of evaluation.

    Returns:
        The picture; None where there is no search with a finite value.

    Raises:
        StorageError: a record is damaged.
    """
    files = sorted((folder / "searches").glob("*.json"))
    picture = folder / "searches" / PICTURE
    if not files:
        return None
    if picture.is_file() and picture.stat().st_mtime_ns > max(file.stat().st_mtime_ns for file in files):
        return picture
    from cmray.report.figures import search_figure

    trial = TrialRecord(
        name=folder.name, label=label, role="trial", panels=[], objective="", experiment=folder.parent.name,
        folder=folder, config={}, status="finished", searches=[read_record(file, Search) for file in files],
    )  # fmt: skip
    metric = trial.searches[0].provenance.metric
    search_figure(ExperimentRecord(name=folder.name, folder=folder, trials=[trial], metric=metric), picture.parent)
    return picture if picture.is_file() else None


def search_points(searches: Sequence[Search]) -> DataFrame:
    """A row for every evaluated point, in the order in which they were asked for.

    Columns: sigma and value first, with which MLflow begins to compare tables; search and key, which one; metric; n;
    nfe; mode; order, from 1; time, which of the noise levels was searched (the first is sigma_max); error; tied;
    confirmed; chosen.
    """
    import pandas as pd

    rows = []
    for search in searches:
        rounds = search.rounds or [len(search.points)]
        times = [number for number, count in enumerate(rounds, start=2) for _ in range(count)]
        for order, (point, time) in enumerate(zip(search.points, times, strict=True), start=1):
            rows.append(
                {
                    "sigma": point.sigma,
                    "value": point.value,
                    "search": f"{search.nfe} NFE, {search.mode}, n={search.provenance.n}",
                    "key": search.key,
                    "metric": search.provenance.metric,
                    "n": search.provenance.n,
                    "nfe": search.nfe,
                    "mode": search.mode,
                    "order": order,
                    "time": time,
                    "error": point.error,
                    "tied": point.tied,
                    "confirmed": point.confirmed,
                    "chosen": point.sigma == search.times[time - 1],
                }
            )
    return pd.DataFrame(rows)
