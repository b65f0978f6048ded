"""One place for the looks of every figure: colours, fonts, sizes in inches and points."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmray.core.files import beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.ImageFont import FreeTypeFont

#: Okabe and Ito's palette without its yellow (unreadable on white): told apart with any common colour blindness
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#4B0092")
#: a second cue beside colour, for print and for more lines than colours
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: text and axes, text of less weight, lines that are only counted, the grid, and the background
INK, SOFT, MUTED, FAINT, PAPER = "#222222", "#555555", "#8A8A8A", "#D4D4D4", "#FFFFFF"

#: how many lines of a panel get a colour and a label; the rest are drawn in grey and counted
MAX_LABELLED = 8

TITLE_SIZE = 11.0
TEXT_SIZE = 9.0
LABEL_SIZE = 8.0
SMALL_SIZE = 7.0
DPI = 200

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": TEXT_SIZE,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "cmray",  # the same records give the same file
    "svg.fonttype": "path",
    "text.parse_math": False,  # names may hold dollars
}


def rc() -> Any:
    """A context in which figures are made and saved; nothing outside it changes."""
    import matplotlib

    return matplotlib.rc_context(_RC)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches on an Agg canvas, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Only the two axes that carry numbers, and a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color=FAINT, linewidth=0.5, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=LABEL_SIZE, length=3)


def log_numbers(axis: Any, low: float, high: float) -> None:
    """Plain numbers on a log axis that shows low..high: 1, 2, 5, 10 ... where few decades leave room, else decades."""
    import math

    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    decades = math.log10(high / low)
    if decades < 0.35:  # less than a factor of about two: 1, 2, 5 may not occur even once
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.6 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def text_width(text: str, size: float) -> float:
    """Width of a line of text in inches at `size` points."""
    return _font().getlength(text) / 100 * size / 72


@lru_cache
def _font() -> FreeTypeFont:
    """The figures' font, of which Pillow tells a text's length a hundred times faster than matplotlib."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 100)


def shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` characters. The middle goes: labels of one experiment often differ at their end."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head].rstrip()}…{text[len(text) - (limit - 1 - head) :].lstrip()}"


def short_number(x: float) -> str:
    """1500 -> 1.5k, so that axis labels do not run into each other."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:g}{unit}"
    return f"{x:g}"


def save(figure: Figure, out_dir: Path, stem: str) -> list[Path]:
    """<stem>.png at 200 dpi and <stem>.svg under out_dir, each written beside its place and then renamed."""
    paths = []
    for kind in ("png", "svg"):
        path = out_dir / f"{stem}.{kind}"
        # A date would make two reports of the same records differ.
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with beside(path) as tmp:
            figure.savefig(tmp, format=kind, dpi=DPI, metadata=metadata)
        paths.append(path)
    return paths


def svg_text(figure: Figure) -> str:
    """The figure as SVG for a page: letters stay letters, so that they can be found and copied."""
    import io

    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
