"""The figure of quality against the number of sampling steps, by method (the paper's Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cmray.report import style
from cmray.report.columns import Column, Protocol, lower_is_better, measure_title, value_columns
from cmray.report.layout import Entry, Plot, Sheet, Span, Title, colours_of, span_of, spans_decades
from cmray.report.lines import (
    Point,
    band_of,
    by_seed,
    config_without,
    group_label,
    key_of,
    mean_point,
    panels_of,
    short_names,
)
from cmray.tracking.records import Evaluation, ExperimentRecord, TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_PLOTS = 12
#: fields that may differ between runs of one method that each sample with a number of steps of their own
_OF_THE_STEPS = ("seed", "objective.num_sigmas", "train.steps", "curve.nfe")
#: samplers that need no name beside their model: those it is sampled with by default
_PLAIN = ("one-step", "multistep", "edm-heun", "progressive-distillation")


@dataclass(frozen=True)
class Series:
    """Values of one method over NFE."""

    label: str
    points: tuple[Point, ...]
    teacher: bool = False
    searched: bool = False
    key: str = ""  # of its colour: the first of its trials


def steps_sheet(experiment: ExperimentRecord) -> Sheet | None:
    """Every metric against the network evaluations (NFE) of a sample, one plot a panel and metric.

    One protocol a metric, the one with most values. A line is a model over its NFE, a mean over models that differ
    only in their seed, or models of one method that were each made for a number of steps (progressive distillation).
    Error bars: 95% intervals, or the spread over seeds. Open markers, dotted: searched times. Dashed: teachers.
    None when nothing was measured at more than one NFE.
    """
    columns, plots, several, bands = value_columns(experiment), [], False, []
    metrics = dict.fromkeys(column.metric for column in columns)
    for metric in metrics:
        protocol = next(column.protocol for column in columns if column.metric == metric)
        cells, double = _cells(experiment, columns, metric, protocol)
        several |= double
        teachers = [
            replace(one, teacher=True)
            for trial in experiment.trials
            if trial.role == "teacher"
            for one in _series([[trial]], cells)[0]
        ]
        panels: dict[str, list[Series]] = {}
        for panel, trials in panels_of(experiment).items():
            own, said = _joined(by_seed(experiment, trials), cells)
            if any(len(one.points) > 1 for one in own):
                panels[panel or "trials"] = own
                bands += said
        named = {panel: _named(own, metric) for panel, own in panels.items()}
        colours = colours_of(named)
        for panel, own in panels.items():
            shown = {key: colours[panel][key] for key in named[panel]}
            title = f"{panel} · {metric}" if len(metrics) > 1 else panel
            plots.append(_plot(title, metric, own, teachers, shown))
    if not plots:
        return None
    said = ["error bars: 95% intervals where known", *dict.fromkeys(bands)]
    said += ["open markers: searched times"] if any(column.searched for column in columns) else []
    said += ["of several times at one NFE the best is drawn"] if several else []
    said += [f"the first {_MAX_PLOTS} of {len(plots)} plots"] if len(plots) > _MAX_PLOTS else []
    detail = " · ".join([measure_title(experiment.metric), *said])
    return Sheet("steps", f"{experiment.name}: quality by number of sampling steps", detail, plots[:_MAX_PLOTS])


Key = tuple[bool, str]  # searched, the sampler's name where it is not the default
Cells = dict[str, dict[Key, dict[int, Evaluation]]]  # by trial, key and NFE


def _cells(
    experiment: ExperimentRecord, columns: Sequence[Column], metric: str, protocol: Protocol
) -> tuple[Cells, bool]:
    """The values to draw, and whether a better one had to be chosen from several."""
    cells: Cells = {}
    sign, several = (1 if lower_is_better(metric) else -1), False
    for column in columns:
        if column.metric != metric or column.protocol != protocol:
            continue
        for row in column.best_first():
            cell = column.cells[row]
            p = cell.provenance
            key = (p.searched, "" if p.sampler in _PLAIN else p.sampler)
            at = cells.setdefault(key_of(experiment.trials[row]), {}).setdefault(key, {})
            several |= p.nfe in at
            if p.nfe not in at or sign * cell.value < sign * at[p.nfe].value:
                at[p.nfe] = cell
    return cells, several


def _series(groups: Sequence[Sequence[TrialRecord]], cells: Cells) -> tuple[list[Series], list[str]]:
    """A line for each group of seeds and each way it was sampled, and what the ends of means are."""
    found, bands = [], []
    for group in groups:
        keys = dict.fromkeys(key for trial in group for key in cells.get(key_of(trial), {}))
        for searched, sampler in keys:
            drawn = [_over_nfe(cells.get(key_of(t), {}), searched, sampler) for t in group]
            drawn = [at for at in drawn if at]
            points = []
            for nfe in sorted(set[int]().union(*drawn)):
                here = [at[nfe] for at in drawn if nfe in at]
                if len(here) > 1:
                    points.append(mean_point(nfe, [cell.value for cell in here]))
                    bands.append(band_of(len(here)))
                else:
                    points.append(Point(nfe, here[0].value, here[0].low, here[0].high))
            label = group_label(group) + (f" · {len(drawn)} seeds" if len(group) > 1 else "")
            label += f" · {sampler}" if sampler else ""
            found.append(Series(label, tuple(points), searched=searched, key=key_of(group[0])))
    return found, bands


def _over_nfe(cells: dict[Key, dict[int, Evaluation]], searched: bool, sampler: str) -> dict[int, Evaluation]:
    """One model's values by NFE. Searched ones start from its single step, which has no times to search."""
    own = cells.get((searched, sampler), {})
    fixed = cells.get((False, sampler), {})
    return {1: fixed[1], **own} if searched and own and 1 in fixed else own


def _joined(groups: Sequence[Sequence[TrialRecord]], cells: Cells) -> tuple[list[Series], list[str]]:
    """Series of the groups; those of one method that have a single NFE each are joined into one line."""
    series, bands = _series(groups, cells)
    configs = {
        key_of(t): config_without(t, _OF_THE_STEPS) if t.config else key_of(t) for group in groups for t in group
    }
    kin: dict[str, list[Series]] = {}
    for one in series:
        if len(one.points) == 1 and not one.searched:
            kin.setdefault(configs[one.key], []).append(one)
    out = []
    for one in series:
        family = kin.get(configs[one.key], [])
        if one not in family or len({s.points[0].x for s in family}) < len(family) or len(family) == 1:
            out.append(one)
        elif one is family[0]:
            label = short_names([s.label for s in family])[0] or one.label
            out.append(replace(one, label=label, points=tuple(sorted(s.points[0] for s in family))))
    return out, bands


def _named(own: Sequence[Series], metric: str) -> list[str]:
    """Keys of the series that are drawn: the best, in the order of the plan."""
    sign = 1 if lower_is_better(metric) else -1
    ranked = sorted((one for one in own), key=lambda one: min(sign * p.y for p in one.points))
    best = list(dict.fromkeys(one.key for one in ranked))[: style.MAX_LABELLED]
    return [key for key in dict.fromkeys(one.key for one in own) if key in best]


def _plot(title: str, metric: str, own: Sequence[Series], teachers: Sequence[Series], colours: dict[str, str]) -> Plot:
    shown = [one for one in own if one.key in colours]
    ends = [y for one in [*shown, *teachers] for p in one.points for y in (p.y, p.low, p.high)]
    span = span_of([y for y in ends if y is not None])
    shared, names = short_names([one.label for one in own])
    texts = {one.label: name for one, name in zip(own, names, strict=True)}
    entries = [Entry(t.points[-1].y, t.label, f"{t.points[-1].y:.3g}", style.INK) for t in teachers]
    for one in shown:
        text = texts[one.label] + (", searched" if one.searched else "")
        marker = style.MARKERS[style.PALETTE.index(colours[one.key])]
        last = one.points[-1].y
        entries.append(Entry(last, text, f"{last:.3g}", colours[one.key], marker, one.searched))
    left_out = len({one.key for one in own}) - len(colours)
    remarks = [f"not drawn: {left_out} more"] if left_out else []
    draw = partial(_draw, series=shown, teachers=teachers, colours=colours, metric=metric, span=span)
    return Plot(Title(title, shared), draw, span, entries, remarks)


def _draw(
    ax: Axes,
    series: Sequence[Series],
    teachers: Sequence[Series],
    colours: dict[str, str],
    metric: str,
    span: Span,
) -> None:
    for one in [*teachers, *series]:
        xs, ys = [p.x for p in one.points], [p.y for p in one.points]
        colour = style.INK if one.teacher else colours[one.key]
        line = (0, (5, 3)) if one.teacher else ":" if one.searched else "-"
        below = [0 if p.low is None else max(0.0, p.y - max(p.low, span.low)) for p in one.points]
        above = [0 if p.high is None else max(0.0, p.high - p.y) for p in one.points]
        ax.errorbar(
            xs, ys, yerr=[below, above], color=colour, linewidth=1.3, linestyle=line, elinewidth=0.9, capsize=2,
            marker="." if one.teacher else style.MARKERS[style.PALETTE.index(colour)], markersize=4.5,
            markerfacecolor=style.PAPER if one.searched else colour, zorder=2 if one.teacher else 3,
        )  # fmt: skip
    nfes = sorted({int(p.x) for one in [*teachers, *series] for p in one.points})
    if spans_decades(nfes):
        ax.set_xscale("log")
        ax.set_xlim(nfes[0] / 1.2, nfes[-1] * 1.2)
    else:
        ax.set_xlim(nfes[0] - 0.3, nfes[-1] + 0.3)
    ax.set_xticks(_apart(nfes), [f"{n:,}" for n in _apart(nfes)])
    ax.minorticks_off()
    ax.set_xlabel("network evaluations a sample (NFE)", size=style.LABEL_SIZE)
    ax.set_ylabel(metric, size=style.LABEL_SIZE)


def _apart(nfes: Sequence[int]) -> list[int]:
    """Ticks that do not run into each other on the axis that shows `nfes`."""

    def place(n: int) -> float:
        if spans_decades(nfes):
            return math.log(n / nfes[0]) / math.log(nfes[-1] / nfes[0])
        return (n - nfes[0]) / max(1, nfes[-1] - nfes[0])

    kept: list[int] = []
    for n in nfes:
        if not kept or place(n) - place(kept[-1]) > 0.07:
            kept.append(n)
    return kept
