"""Plots side by side, axes that fit their numbers, and labels at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cmray.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: inches: the data area of one plot, and the margins around it
PLOT_W, PLOT_H = 3.3, 2.5
_PAGE_W = 2.8  # of a plot on a page, whose letters come out the larger
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEAD, _SUB, _BARE_TOP = 0.7, 0.15, 0.42, 0.5, 0.62, 0.14, 0.12
_LABEL_CHARS = 36
#: behind text that lies over lines
PLATE = {"facecolor": style.PAPER, "alpha": 0.8, "linewidth": 0, "pad": 1.5}
#: numbers that span more than this factor get a log axis
_LOG_FROM = 4.0


def colours_of(named: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """A colour for each key of each plot: the same in all plots if the palette suffices for all of them."""
    every = dict.fromkeys(key for keys in named.values() for key in keys)
    if len(every) <= len(style.PALETTE):
        return {plot: dict(zip(every, style.PALETTE, strict=False)) for plot in named}
    return {plot: dict(zip(keys, style.PALETTE, strict=False)) for plot, keys in named.items()}


class Title(NamedTuple):
    """Of one plot: its name, and in small print what all its lines share."""

    name: str
    shared: str = ""


class Span(NamedTuple):
    """The ends of a y axis, and whether it is logarithmic."""

    low: float
    high: float
    log: bool

    def height(self, y: float) -> float:
        """Where y stands between the ends, 0 to 1."""
        if self.log:
            return math.log(max(y, self.low) / self.low) / math.log(self.high / self.low)
        return (y - self.low) / (self.high - self.low)

    def apply(self, axes: Axes) -> None:
        axes.set_ylim(self.low, self.high)
        if self.log:
            axes.set_yscale("log")
            axes.set_ylim(self.low, self.high)
            style.log_numbers(axes.yaxis, self.low, self.high)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether numbers are far enough apart for a log axis, and positive."""
    return min(values) > 0 and max(values) / min(values) > _LOG_FROM


def span_of(values: Sequence[float]) -> Span:
    """The axis that shows finite `values`: logarithmic where they are positive and far apart."""
    low, high = min(values), max(values)
    if spans_decades(values):
        return Span(low / 1.25, high * 1.25, True)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Span(low - margin if low < 0 or low > margin else 0.0, high + margin, False)


class Entry(NamedTuple):
    """What a plot says of one of its lines: in a file at the line's end, on a page in a list below."""

    y: float  # where the line ends, in the units of the axis
    text: str
    value: str
    colour: str
    marker: str = ""  # none for a dashed level
    open: bool = False  # whether the marker is, on a dotted line

    @property
    def whole(self) -> str:
        return f"{style.shorten(self.text, _LABEL_CHARS)}  {self.value}"


@dataclass(frozen=True)
class Plot:
    title: Title
    draw: Callable[[Axes], None]
    span: Span | None = None  # of the y axis; None leaves it to `draw`
    entries: Sequence[Entry] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Sheet:
    """The plots of one figure, its file's stem, and what is said above them."""

    stem: str
    title: str
    detail: str
    plots: Sequence[Plot]


def save_sheet(sheet: Sheet, out_dir: Path) -> list[Path]:
    """<stem>.png and <stem>.svg under out_dir, all plots in one figure."""
    with style.rc():
        figure, axes = _axes_grid([plot.title for plot in sheet.plots], _gutter(sheet), (sheet.title, sheet.detail))
        for ax, plot in zip(axes, sheet.plots, strict=True):
            plot.draw(ax)
            if plot.span:
                plot.span.apply(ax)
                _label_ends(ax, plot.entries, plot.span)
            if plot.remarks:
                ax.text(0.98, 0.97, "\n".join(plot.remarks), transform=ax.transAxes, ha="right", va="top",
                        size=style.SMALL_SIZE, color=style.SOFT, zorder=5, bbox=PLATE)  # fmt: skip
        return style.save(figure, Path(out_dir), sheet.stem)


def page_svgs(sheet: Sheet) -> list[str]:
    """Each plot as an SVG of its own for a page, which says its title, entries and remarks itself."""
    texts = []
    with style.rc():
        for plot in sheet.plots:
            figure, (ax,) = _axes_grid([Title("")], 0.0, None)
            plot.draw(ax)
            if plot.span:
                plot.span.apply(ax)
            texts.append(style.svg_text(figure))
    return texts


def _gutter(sheet: Sheet) -> float:
    """Inches right of each plot that the labels need."""
    widths = [style.text_width(entry.whole, style.SMALL_SIZE) for plot in sheet.plots for entry in plot.entries]
    return 0.35 + max(widths) if widths else 0.1


def _label_ends(axes: Axes, entries: Sequence[Entry], span: Span) -> None:
    """Texts right of the plot at the height of their line, moved apart where they would touch."""
    gap = style.SMALL_SIZE * 1.3 / 72 / PLOT_H
    wanted = sorted(entries, key=lambda entry: (span.height(entry.y), entry.text))
    heights = [span.height(entry.y) for entry in wanted]
    places = list(heights)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    ceiling = max(1.0, (len(places) - 1) * gap)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    for entry, height, place in zip(wanted, heights, places, strict=True):
        axes.plot([1.0, 1.025, 1.045], [height, place, place], transform=axes.transAxes, color=entry.colour,
                  linewidth=0.7, clip_on=False, alpha=0.8)  # fmt: skip
        axes.plot([1.05], [place], transform=axes.transAxes, color=entry.colour, marker=entry.marker, markersize=3.5,
                  markerfacecolor=style.PAPER if entry.open else entry.colour, linestyle="none",
                  clip_on=False)  # fmt: skip
        axes.text(1.07, place, entry.whole, transform=axes.transAxes, va="center", size=style.SMALL_SIZE)


def _axes_grid(titles: Sequence[Title], gutter: float, heading: tuple[str, str] | None) -> tuple[Figure, list[Axes]]:
    """A figure with one titled plot each; sizes in inches, so text never depends on how many there are.

    Args:
        gutter: inches right of each plot for labels.
        heading: title and detail above all; None for a plot whose page says them.
    """
    columns = 1 if len(titles) == 1 else 2 if len(titles) <= 4 or gutter > 2.2 else 3
    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    margins = _LEFT + gutter + _RIGHT
    panel_w, head = PLOT_W if heading else _PAGE_W, 0.0
    if heading:
        title, detail = heading
        text = max(style.text_width(title, style.TITLE_SIZE) * 1.1, style.text_width(detail, style.LABEL_SIZE)) + 0.5
        panel_w = max(panel_w, text / columns - margins)  # as wide as the title, which may be wider than one plot
        head = _HEAD
    top = (_TOP + (_SUB if any(title.shared for title in titles) else 0)) if heading else _BARE_TOP
    cell_w, cell_h = panel_w + margins, top + PLOT_H + _BOTTOM
    width, height = columns * cell_w, rows * cell_h + head
    figure = style.new_figure(width, height)
    if heading:
        figure.text(0.25 / width, 1 - 0.2 / height, heading[0], size=style.TITLE_SIZE, weight="bold", va="top")
        figure.text(0.25 / width, 1 - 0.43 / height, heading[1], size=style.LABEL_SIZE, color=style.SOFT, va="top")
    axes = []
    for i, title in enumerate(titles):
        left = (i % columns) * cell_w + _LEFT
        bottom = (rows - 1 - i // columns) * cell_h + _BOTTOM
        ax = figure.add_axes((left / width, bottom / height, panel_w / width, PLOT_H / height))
        if title.name:
            ax.set_title(title.name, loc="left", size=style.TEXT_SIZE, weight="bold", pad=16 if title.shared else 6)
        if title.shared:
            limit = max(20, int(panel_w / style.text_width("n" * 20, style.SMALL_SIZE) * 24))
            ax.text(0, 1.022, style.shorten(title.shared, limit), transform=ax.transAxes, size=style.SMALL_SIZE,
                    color=style.SOFT, va="bottom")  # fmt: skip
        style.tidy(ax)
        axes.append(ax)
    return figure, axes
