"""The figure of what searches of sampling times saw."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from cmray.report import style
from cmray.report.columns import lower_is_better, measure_title, times_label
from cmray.report.layout import PLATE, Plot, Sheet, Title, spans_decades
from cmray.report.lines import short_names
from cmray.tracking.records import ExperimentRecord, Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_SEARCHES = 12


def search_sheet(experiment: ExperimentRecord) -> Sheet | None:
    """The metric against sigma (log x), one plot a search; None when there is no search with points.

    Every evaluated point carries its order of evaluation; a star marks the best of each searched time. At most 12
    searches, the best ones, are drawn; the detail says of how many.
    """
    found = [(trial, search) for trial in experiment.trials for search in trial.searches if _finite(search)]
    if not found:
        return None
    found.sort(key=lambda pair: (_sign(pair[1]) * pair[1].value, pair[0].label))
    shown = found[:_MAX_SEARCHES]
    p = shown[0][1].provenance
    seeds = {(s.provenance.n, s.provenance.seed_first) for _, s in shown}
    said = [
        measure_title(p.metric),
        f"n = {p.n:,} from seed {p.seed_first}" if len(seeds) == 1 else "searches differ in n or seeds",
        f"the best {len(shown)} of {len(found)} searches" if len(found) > len(shown) else "",
        "numbers: order of evaluation, star: best",
    ]
    shared, names = short_names([f"{trial.label} · {search.nfe} NFE" for trial, search in shown])
    plots = [
        Plot(Title(style.shorten(name, 46), shared), partial(_draw, search=search))
        for name, (_, search) in zip(names, shown, strict=True)
    ]
    detail = " · ".join(part for part in said if part)
    return Sheet("search", f"{experiment.name}: search of sampling times", detail, plots)


def _finite(search: Search) -> bool:
    return any(math.isfinite(point.value) for point in search.points)


def _sign(search: Search) -> int:
    return 1 if lower_is_better(search.provenance.metric) else -1


def _draw(ax: Axes, search: Search) -> None:
    start = 0
    rounds = search.rounds or [len(search.points)]
    for number, count in enumerate(rounds):
        points = list(enumerate(search.points[start : start + count], start=start + 1))
        start += count
        points = sorted(((p.sigma, p.value, order) for order, p in points if math.isfinite(p.value)))
        if not points:
            continue
        colour = style.PALETTE[number % len(style.PALETTE)]
        ax.plot([p[0] for p in points], [p[1] for p in points], color=colour, linewidth=1.1, marker="o", markersize=3.5,
                alpha=0.9, zorder=3)  # fmt: skip
        best = min(points, key=lambda p: _sign(search) * p[1])
        for sigma, value, order in points:
            # Below the points: the line turns upwards there, so the number of a minimum stays clear of it.
            ax.annotate(str(order), (sigma, value), xytext=(0, -6), textcoords="offset points", ha="center", va="top",
                        size=style.SMALL_SIZE, color=style.SOFT, zorder=4)  # fmt: skip
        ax.plot([best[0]], [best[1]], color=colour, marker="*", markersize=11, markeredgecolor=style.PAPER,
                markeredgewidth=0.6, zorder=5)  # fmt: skip
        if len(rounds) > 1:
            ax.text(0.97, 0.90 - 0.06 * number, f"time {number + 2}: best {best[0]:.3g}", transform=ax.transAxes,
                    ha="right", va="top", size=style.SMALL_SIZE, color=colour, bbox=PLATE)  # fmt: skip
        ax.axvline(best[0], color=colour, linewidth=0.7, linestyle=":", alpha=0.6, zorder=1)
    ax.set_xscale("log")
    sigmas = [p.sigma for p in search.points]
    low, high = min(sigmas) / 1.3, max(sigmas) * 1.3
    ax.set_xlim(low, high)
    style.log_numbers(ax.xaxis, low, high)
    ax.margins(y=0.18)
    values = [p.value for p in search.points if math.isfinite(p.value)]
    if spans_decades(values):
        ax.set_yscale("log")
        style.log_numbers(ax.yaxis, min(values), max(values))
    ax.text(0.97, 0.96, f"best: {times_label(search.times)}  →  {search.value:.3g}", transform=ax.transAxes, ha="right",
            va="top", size=style.SMALL_SIZE, bbox=PLATE)  # fmt: skip
    ax.set_xlabel("noise level σ of the searched time", size=style.LABEL_SIZE)
    ax.set_ylabel(f"{search.provenance.metric} (search seeds)", size=style.LABEL_SIZE)
