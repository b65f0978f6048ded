"""Figures: quality during training, panel by panel, and what a search of sampling times saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmray.report import style
from cmray.report.columns import one_step_column, times_label, value_columns
from cmray.tracking.records import ExperimentRecord, Search, TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: inches: the data area of one panel, and the margins around it
_PANEL_W, _PANEL_H = 3.3, 2.5
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEAD = 0.7, 0.15, 0.42, 0.5, 0.62
_LABEL_CHARS = 34
_MAX_SEARCHES = 12
#: behind text that lies over lines
_PLATE = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}


def curve_figure(experiment: ExperimentRecord, out_dir: Path, nfe: int = 1) -> list[Path]:
    """curve.png and curve.svg under out_dir: the experiment's metric at `nfe` against training, one plot a panel.

    Log y axis, shared by all panels. The best lines of a panel are coloured and labelled at their end with their last
    value; the others are grey and counted. Dashed: the teachers' evaluations. Trials without a curve are named.
    Returns [] when no trial has a point to draw.
    """
    curves = {trial.name: _curve(experiment, trial, nfe) for trial in experiment.trials if trial.role == "trial"}
    if not any(curves.values()):
        return []
    panels = _panels(experiment)
    levels = _teacher_levels(experiment)
    ys = [y for curve in curves.values() for _, y in curve] + [y for _, y in levels]
    low, high = min(ys) / 1.25, max(ys) * 1.25
    x_end = max(x for curve in curves.values() for x, _ in curve) or 1

    colours = _colours(panels, curves)
    labels = {name: _end_labels(trials, curves, levels) for name, trials in panels.items()}
    gutter = 0.25 + max(
        (style.text_width(text, style.SMALL_SIZE) for ls in labels.values() for _, text, _ in ls), default=0
    )
    with style.rc():
        titles = _curve_titles(experiment, nfe)
        figure, axes = _axes_grid([name or "trials" for name in panels], gutter, titles)
        for ax, (name, trials) in zip(axes, panels.items(), strict=True):
            _draw_panel(ax, trials, curves, levels, colours[name], x_end)
            ax.set_yscale("log")
            ax.set_ylim(low, high)
            style.log_numbers(ax.yaxis, low, high)
            ax.set_xlim(0, x_end)
            ax.xaxis.set_major_formatter(lambda x, _: style.short_number(x))
            ax.locator_params(axis="x", nbins=5)
            ax.set_xlabel("training step" if experiment.x_axis == "step" else "training images", size=style.LABEL_SIZE)
            ax.set_ylabel(f"{experiment.metric}, {nfe} NFE", size=style.LABEL_SIZE)
            ends = [(y, text, colours[name].get(who, style.INK)) for y, text, who in labels[name]]
            _label_ends(ax, ends, low, high)
        return style.save(figure, Path(out_dir), "curve")


def search_figure(experiment: ExperimentRecord, out_dir: Path) -> list[Path]:
    """search.png and search.svg under out_dir: the metric against sigma (log x), one plot a search.

    Every evaluated point carries its order of evaluation; a star marks the best of each searched time. At most 12
    searches, the best ones, are drawn; the title says of how many. Returns [] when there is no search with points.
    """
    found = [(trial, search) for trial in experiment.trials for search in trial.searches if _finite(search)]
    if not found:
        return []
    found.sort(key=lambda pair: (pair[1].value, pair[0].label))
    shown = found[:_MAX_SEARCHES]
    p = shown[0][1].provenance
    which = f"the best {len(shown)} of {len(found)} searches" if len(found) > len(shown) else ""
    seeds = {(s.provenance.n, s.provenance.seed_first) for _, s in shown}
    protocol = f"n = {p.n:,} from seed {p.seed_first}" if len(seeds) == 1 else "searches differ in n or seeds"
    detail = " · ".join(
        part for part in (_what(p.metric), protocol, which, "numbers: order of evaluation, star: best") if part
    )
    with style.rc():
        names = [style.shorten(f"{trial.label} · {search.nfe} NFE", 46) for trial, search in shown]
        figure, axes = _axes_grid(names, 0.1, (f"{experiment.name}: search of sampling times", detail))
        for ax, (_, search) in zip(axes, shown, strict=True):
            _draw_search(ax, search)
            ax.set_xlabel("noise level σ of the searched time", size=style.LABEL_SIZE)
            ax.set_ylabel(f"{search.provenance.metric} (search seeds)", size=style.LABEL_SIZE)
        return style.save(figure, Path(out_dir), "search")


def _curve(experiment: ExperimentRecord, trial: TrialRecord, nfe: int) -> list[tuple[int, float]]:
    """Points a log axis can show: finite and positive, by x."""
    key = f"{experiment.metric}@{nfe}"
    points = [
        (event.step if experiment.x_axis == "step" else event.nimg, event.metrics[key])
        for event in trial.events
        if event.kind == "curve" and key in event.metrics
    ]
    return sorted((x, y) for x, y in points if math.isfinite(y) and y > 0)


def _panels(experiment: ExperimentRecord) -> dict[str, list[TrialRecord]]:
    """Trials by panel, in order of appearance; those in no panel come last under ''."""
    trials = [trial for trial in experiment.trials if trial.role == "trial"]
    names = dict.fromkeys(name for trial in trials for name in trial.panels)
    panels = {name: [trial for trial in trials if name in trial.panels] for name in names}
    loose = [trial for trial in trials if not trial.panels]
    return {**panels, "": loose} if loose else panels


def _teacher_levels(experiment: ExperimentRecord) -> list[tuple[str, float]]:
    """(text, value) of the teachers' fewest and most evaluations of the network, in the curve's own protocol."""
    columns = value_columns(experiment)
    one_step = one_step_column(experiment, columns)
    levels: list[tuple[str, float]] = []
    for row, trial in enumerate(experiment.trials):
        cells = [
            c.cells[row]
            for c in columns
            if row in c.cells and c.metric == experiment.metric and (not one_step or c.protocol == one_step.protocol)
        ]
        cells = sorted((c for c in cells if math.isfinite(c.value) and c.value > 0), key=lambda c: c.provenance.nfe)
        if trial.role == "teacher" and cells:
            for cell in {id(c): c for c in (cells[0], cells[-1])}.values():
                levels.append((f"{style.shorten(trial.label, 20)}, {cell.provenance.nfe} NFE", cell.value))
    return levels


Colours = dict[str, str]
Curves = dict[str, list[tuple[int, float]]]
EndLabel = tuple[float, str, str]  # height in data units, text, trial's name


def _colours(panels: dict[str, list[TrialRecord]], curves: Curves) -> dict[str, Colours]:
    """A colour for each labelled trial of each panel. It is the same in all panels if 8 suffice."""
    every = dict.fromkeys(t.name for trials in panels.values() for t in _labelled(trials, curves))
    if len(every) <= len(style.PALETTE):
        same: Colours = dict(zip(every, style.PALETTE, strict=False))
        return {name: dict(same) for name in panels}
    return {
        name: {t.name: colour for t, colour in zip(_labelled(trials, curves), style.PALETTE, strict=False)}
        for name, trials in panels.items()
    }


def _labelled(trials: Sequence[TrialRecord], curves: Curves) -> list[TrialRecord]:
    """The trials that get a colour: the lowest last values, in the order of the plan."""
    drawn = [trial for trial in trials if curves[trial.name]]
    best = sorted(drawn, key=lambda trial: curves[trial.name][-1][1])[: style.MAX_LABELLED]
    return [trial for trial in drawn if trial in best]


def _end_labels(trials: Sequence[TrialRecord], curves: Curves, levels: Sequence[tuple[str, float]]) -> list[EndLabel]:
    labels: list[EndLabel] = [(y, f"{text}  {y:.3g}", "") for text, y in levels]
    for trial in _labelled(trials, curves):
        y = curves[trial.name][-1][1]
        ending = {"failed": " (failed)", "stopped": " (stopped)", "running": " (running)"}.get(trial.status, "")
        labels.append((y, f"{style.shorten(trial.label, _LABEL_CHARS)}{ending}  {y:.3g}", trial.name))
    return labels


def _draw_panel(
    ax: Axes,
    trials: Sequence[TrialRecord],
    curves: Curves,
    levels: Sequence[tuple[str, float]],
    colours: Colours,
    x_end: float,
) -> None:
    for _, y in levels:
        ax.axhline(y, color=style.INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1.5)
    labelled = {trial.name for trial in _labelled(trials, curves)}
    for trial in trials:
        xs, ys = [x for x, _ in curves[trial.name]], [y for _, y in curves[trial.name]]
        if not xs:
            continue
        if trial.name in labelled:
            colour = colours[trial.name]
            marker = style.MARKERS[style.PALETTE.index(colour)]
            ax.plot(xs, ys, color=colour, linewidth=1.4, marker=marker, markersize=3.5, clip_on=False, zorder=3,
                    markevery=max(1, len(xs) // 10))  # fmt: skip
            # A line that stops early is led to its label at the edge.
            ax.hlines(ys[-1], xs[-1], x_end, color=colour, linewidth=0.7, linestyle=":", alpha=0.7)
        else:
            ax.plot(xs, ys, color=style.MUTED, alpha=0.45, linewidth=0.8, marker="." if len(xs) == 1 else None)
    remarks = []
    others = sum(1 for trial in trials if curves[trial.name]) - len(labelled)
    if others:
        remarks.append(f"grey: {others} more")
    for status in ("failed", "stopped", "running", "waiting", "finished"):
        missing = [t.label for t in trials if not curves[t.name] and t.status == status]
        if missing:
            more = f" +{len(missing) - 1}" if len(missing) > 1 else ""
            remarks.append(f"no curve ({status}): {style.shorten(missing[0], 28)}{more}")
    if remarks:
        ax.text(0.98, 0.97, "\n".join(remarks), transform=ax.transAxes, ha="right", va="top", size=style.SMALL_SIZE,
                color="#666666", zorder=5, bbox=_PLATE)  # fmt: skip


def _label_ends(ax: Axes, labels: Sequence[tuple[float, str, str]], low: float, high: float) -> None:
    """Texts right of the plot at the height of their line, moved apart where they would touch."""
    gap = style.SMALL_SIZE * 1.3 / 72 / _PANEL_H
    wanted = sorted((math.log(y / low) / math.log(high / low), text, colour) for y, text, colour in labels)
    heights = [height for height, _, _ in wanted]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    ceiling = max(1.0, (len(heights) - 1) * gap)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    for (height, text, colour), place in zip(wanted, heights, strict=True):
        ax.plot([1.0, 1.025, 1.04], [height, place, place], transform=ax.transAxes, color=colour, linewidth=0.7,
                clip_on=False, alpha=0.8)  # fmt: skip
        ax.text(1.05, place, text, transform=ax.transAxes, va="center", size=style.SMALL_SIZE, color=colour)


def _finite(search: Search) -> bool:
    return any(math.isfinite(point.value) for point in search.points)


def _draw_search(ax: Axes, search: Search) -> None:
    start = 0
    rounds = search.rounds or [len(search.points)]
    for number, count in enumerate(rounds):
        points = list(enumerate(search.points[start : start + count], start=start + 1))
        start += count
        points = sorted(((p.sigma, p.value, order) for order, p in points if math.isfinite(p.value)))
        if not points:
            continue
        colour = style.PALETTE[number % len(style.PALETTE)]
        sigmas, values = [p[0] for p in points], [p[1] for p in points]
        ax.plot(sigmas, values, color=colour, linewidth=1.1, marker="o", markersize=3.5, alpha=0.9, zorder=3)
        best = min(points, key=lambda p: p[1])
        for sigma, value, order in points:
            # Below the points: the line turns upwards there, so the number of a minimum stays clear of it.
            ax.annotate(str(order), (sigma, value), xytext=(0, -6), textcoords="offset points", ha="center", va="top",
                        size=style.SMALL_SIZE, color="#555555", zorder=4)  # fmt: skip
        ax.plot([best[0]], [best[1]], color=colour, marker="*", markersize=11, markeredgecolor="white",
                markeredgewidth=0.6, zorder=5)  # fmt: skip
        if len(rounds) > 1:
            ax.text(0.97, 0.90 - 0.06 * number, f"time {number + 2}: best {best[0]:.3g}", transform=ax.transAxes,
                    ha="right", va="top", size=style.SMALL_SIZE, color=colour, bbox=_PLATE)  # fmt: skip
        ax.axvline(best[0], color=colour, linewidth=0.7, linestyle=":", alpha=0.6, zorder=1)
    ax.set_xscale("log")
    sigmas = [p.sigma for p in search.points]
    low, high = min(sigmas) / 1.3, max(sigmas) * 1.3
    ax.set_xlim(low, high)
    style.log_numbers(ax.xaxis, low, high)
    ax.margins(y=0.18)
    ax.text(0.97, 0.96, f"best: {times_label(search.times)}  →  {search.value:.3g}", transform=ax.transAxes, ha="right",
            va="top", size=style.SMALL_SIZE, bbox=_PLATE)  # fmt: skip


def _curve_titles(experiment: ExperimentRecord, nfe: int) -> tuple[str, str]:
    column = one_step_column(experiment, value_columns(experiment))
    settings = [t.config["curve"] for t in experiment.trials if t.config.get("curve")]
    sizes = sorted({int(s["num_samples"]) for s in settings if "num_samples" in s})
    curve = f"curves at n = {' and '.join(f'{size:,}' for size in sizes)}" if sizes else ""
    steps = "one step" if nfe == 1 else f"{nfe} steps"
    n = f"evaluations at n = {next(iter(column.cells.values())).provenance.n:,}" if column else ""
    detail = " · ".join(
        part
        for part in (_what(experiment.metric), "lower is better", curve, f"dashed: teacher, {n}" if n else "")
        if part
    )
    return f"{experiment.name}: {experiment.metric} in {steps} during training", detail


def _what(metric: str) -> str:
    kind, _, extractor = metric.partition("/")
    return f"Fréchet distance in features of '{extractor}'" if kind == "fd" else metric


def _axes_grid(names: Sequence[str], gutter: float, titles: tuple[str, str]) -> tuple[Figure, list[Axes]]:
    """A figure with one titled plot a name; sizes in inches, so text never depends on how many there are."""
    columns = 1 if len(names) == 1 else 2 if len(names) <= 4 or gutter > 2.2 else 3
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    title, detail = titles
    text = max(style.text_width(title, style.TITLE_SIZE) * 1.1, style.text_width(detail, style.LABEL_SIZE)) + 0.5
    margins = _LEFT + gutter + _RIGHT
    panel_w = max(_PANEL_W, text / columns - margins)  # as wide as the title, which may be wider than one plot
    cell_w, cell_h = panel_w + margins, _TOP + _PANEL_H + _BOTTOM
    width, height = columns * cell_w, rows * cell_h + _HEAD
    figure = style.new_figure(width, height)
    figure.text(0.25 / width, 1 - 0.2 / height, title, size=style.TITLE_SIZE, weight="bold", va="top")
    figure.text(0.25 / width, 1 - 0.43 / height, detail, size=style.LABEL_SIZE, color="#555555", va="top")
    axes = []
    for i, name in enumerate(names):
        left = (i % columns) * cell_w + _LEFT
        bottom = (rows - 1 - i // columns) * cell_h + _BOTTOM
        ax = figure.add_axes((left / width, bottom / height, panel_w / width, _PANEL_H / height))
        ax.set_title(name, loc="left", size=style.TEXT_SIZE, weight="bold", pad=6)
        style.tidy(ax)
        axes.append(ax)
    return figure, axes
