"""The figure of quality during training, panel by panel (the paper's Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from cmray.report import style
from cmray.report.columns import lower_is_better, measure_title, one_step_column, value_columns
from cmray.report.layout import Entry, Plot, Sheet, Span, Title, colours_of, span_of
from cmray.report.lines import Line, curve_metric, panels_of, short_names, training_lines
from cmray.tracking.records import ExperimentRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Level = tuple[str, float]  # a teacher's name with its NFE, and its value


def curve_sheet(experiment: ExperimentRecord, nfe: int = 1) -> Sheet | None:
    """The experiment's metric at `nfe` against training, one plot a panel with the same axes.

    Trials that differ only in their seed are one line, their mean. Bands are the 95% intervals of single points
    where the records have them, and the spread over seeds. The best lines of a panel are coloured and named by what
    varies within it; the others are grey and counted. Dashed: the teachers' evaluations. None without any point.
    """
    metric = curve_metric(experiment)
    panels = {name: training_lines(experiment, trials, metric, nfe) for name, trials in panels_of(experiment).items()}
    drawn = [line for lines in panels.values() for line in lines if line.points]
    if not drawn:
        return None
    levels = _teacher_levels(experiment, metric)
    span = span_of([p.y for line in drawn for p in line.points] + [y for _, y in levels])
    x_end = max(p.x for line in drawn for p in line.points) or 1
    x_label = "training step" if experiment.x_axis == "step" else "training images"
    colours = colours_of({name: [line.key for line in _named(lines, metric)] for name, lines in panels.items()})

    plots = []
    for name, lines in panels.items():
        named = _named(lines, metric)
        shared, names = short_names([line.label for line in lines])
        texts = dict(zip((line.key for line in lines), names, strict=True))
        entries = [Entry(y, text, f"{y:.3g}", style.INK) for text, y in levels]
        for line in named:
            colour = colours[name][line.key]
            ending = "" if line.status == "finished" else f" ({line.status})"
            marker = style.MARKERS[style.PALETTE.index(colour)]
            entries.append(Entry(line.last, texts[line.key] + ending, f"{line.last:.3g}", colour, marker))
        draw = partial(_draw, lines=lines, named=named, levels=levels, colours=colours[name], x_end=x_end,
                       labels=(x_label, f"{metric}, {nfe} NFE"), span=span)  # fmt: skip
        plots.append(Plot(Title(name or "trials", shared), draw, span, entries, _remarks(lines, named)))
    return Sheet("curve", *_titles(experiment, metric, nfe, drawn, bool(levels)), plots)


def _teacher_levels(experiment: ExperimentRecord, metric: str) -> list[Level]:
    """The teachers' fewest and most evaluations of the network, in the protocol of the students' one step."""
    columns = value_columns(experiment)
    one_step = one_step_column(experiment, columns)
    levels: list[Level] = []
    for row, trial in enumerate(experiment.trials):
        cells = [
            c.cells[row]
            for c in columns
            if row in c.cells and c.metric == metric and (not one_step or c.protocol == one_step.protocol)
        ]
        cells = sorted((c for c in cells if math.isfinite(c.value)), key=lambda c: c.provenance.nfe)
        if trial.role == "teacher" and cells:
            for cell in {id(c): c for c in (cells[0], cells[-1])}.values():
                levels.append((f"{style.shorten(trial.label, 28)}, {cell.provenance.nfe} NFE", cell.value))
    return levels


def _named(lines: Sequence[Line], metric: str) -> list[Line]:
    """The lines that get a colour: the best last values, in the order of the plan."""
    sign = 1 if lower_is_better(metric) else -1
    drawn = [line for line in lines if line.points]
    best = sorted(drawn, key=lambda line: sign * line.last)[: style.MAX_LABELLED]
    return [line for line in drawn if line in best]


def _draw(
    ax: Axes,
    lines: Sequence[Line],
    named: Sequence[Line],
    levels: Sequence[Level],
    colours: dict[str, str],
    x_end: float,
    labels: tuple[str, str],
    span: Span,
) -> None:
    for _, y in levels:
        ax.axhline(y, color=style.INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1.5)
    for line in lines:
        xs, ys = [p.x for p in line.points], [p.y for p in line.points]
        if line in named:
            colour = colours[line.key]
            banded = [p for p in line.points if p.low is not None and p.high is not None]
            ax.fill_between([p.x for p in banded], [max(p.low or 0, span.low) for p in banded],
                            [p.high or 0 for p in banded], color=colour, alpha=0.18, linewidth=0, zorder=2)  # fmt: skip
            ax.plot(xs, ys, color=colour, linewidth=1.4, marker=style.MARKERS[style.PALETTE.index(colour)],
                    markersize=3.5, clip_on=False, zorder=3, markevery=max(1, len(xs) // 10))  # fmt: skip
            # A line that stops early is led to its label at the edge.
            ax.hlines(ys[-1], xs[-1], x_end, color=colour, linewidth=0.7, linestyle=":", alpha=0.7)
        elif xs:
            ax.plot(xs, ys, color=style.MUTED, alpha=0.45, linewidth=0.8, marker="." if len(xs) == 1 else None)
    ax.set_xlim(0, x_end)
    ax.xaxis.set_major_formatter(lambda x, _: style.short_number(x))
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(labels[0], size=style.LABEL_SIZE)
    ax.set_ylabel(labels[1], size=style.LABEL_SIZE)


def _remarks(lines: Sequence[Line], named: Sequence[Line]) -> list[str]:
    """What the plot does not show."""
    remarks = []
    grey = sum(bool(line.points) for line in lines) - len(named)
    if grey:
        remarks.append(f"grey: {grey} more")
    without = [line for line in lines if not line.points]
    for status in dict.fromkeys(line.status for line in without):
        missing = [line.label for line in without if line.status == status]
        more = f" +{len(missing) - 1}" if len(missing) > 1 else ""
        remarks.append(f"no curve ({status}): {style.shorten(missing[0], 28)}{more}")
    return remarks


def _titles(
    experiment: ExperimentRecord, metric: str, nfe: int, drawn: Sequence[Line], with_teacher: bool
) -> tuple[str, str]:
    column = one_step_column(experiment, value_columns(experiment))
    settings = [t.config["curve"] for t in experiment.trials if t.config.get("curve")]
    sizes = sorted({int(s["num_samples"]) for s in settings if "num_samples" in s})
    steps = "one step" if nfe == 1 else f"{nfe} steps"
    said = [
        measure_title(metric),
        "lower is better" if lower_is_better(metric) else "higher is better",
        f"curves at n = {' and '.join(f'{size:,}' for size in sizes)}" if sizes else "",
        *(f"band: {band}" for band in dict.fromkeys(line.band for line in drawn if line.band)),
    ]
    if with_teacher and column:
        said.append(f"dashed: teacher, evaluations at n = {next(iter(column.cells.values())).provenance.n:,}")
    return f"{experiment.name}: {metric} in {steps} during training", " · ".join(part for part in said if part)
