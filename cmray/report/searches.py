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
    """A row for every evaluated point: which search and metric, how many evaluations of the network a sample takes,
    which of its times, the noise level, value, standard error, and whether it was chosen."""
    import pandas as pd

    rows = []
    for search in searches:
        start = 0
        for time, count in enumerate(search.rounds, start=2):
            for point in search.points[start : start + count]:
                rows.append(
                    {
                        "search": search.key,
                        "metric": search.provenance.metric,
                        "n": search.provenance.n,
                        "nfe": search.nfe,
                        "mode": search.mode,
                        "time": time,
                        "sigma": point.sigma,
                        "value": point.value,
                        "error": point.error,
                        "confirmed": point.confirmed,
                        "tied": point.tied,
                        "chosen": point.sigma == search.times[time - 1],
                    }
                )
            start += count
    return pd.DataFrame(rows)
