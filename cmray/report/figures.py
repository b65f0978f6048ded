"""All figures of a report, as files."""

from __future__ import annotations

from pathlib import Path

from cmray.report.figure_curve import curve_sheet
from cmray.report.figure_search import search_sheet
from cmray.report.figure_steps import steps_sheet
from cmray.report.layout import Sheet, save_sheet
from cmray.tracking.records import ExperimentRecord

#: file stems of all kinds of figures there are, in the order of a report
STEMS = ("curve", "steps", "search")


def sheets(experiment: ExperimentRecord) -> list[Sheet]:
    """The figures that an experiment's records allow: curves, quality by sampling steps, searches."""
    found = (curve_sheet(experiment), steps_sheet(experiment), search_sheet(experiment))
    return [sheet for sheet in found if sheet]


def curve_figure(experiment: ExperimentRecord, out_dir: Path, nfe: int = 1) -> list[Path]:
    """curve.png and curve.svg under out_dir; [] when no trial has a point to draw. See `curve_sheet`."""
    return _saved(curve_sheet(experiment, nfe), out_dir)


def steps_figure(experiment: ExperimentRecord, out_dir: Path) -> list[Path]:
    """steps.png and steps.svg under out_dir; [] when nothing was measured at two NFE. See `steps_sheet`."""
    return _saved(steps_sheet(experiment), out_dir)


def search_figure(experiment: ExperimentRecord, out_dir: Path) -> list[Path]:
    """search.png and search.svg under out_dir; [] when there is no search with points. See `search_sheet`."""
    return _saved(search_sheet(experiment), out_dir)


def _saved(sheet: Sheet | None, out_dir: Path) -> list[Path]:
    return save_sheet(sheet, Path(out_dir)) if sheet else []
