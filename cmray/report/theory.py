"""The figure and the table of measured orders of convergence."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from cmray.core.files import write_atomic
from cmray.report.style import LABEL_SIZE, MARKERS, MUTED, PALETTE, TITLE_SIZE, new_figure, rc, save, tidy
from cmray.theory.measure import Curve

PANELS = (
    (("Theorem 1",), "Theorem 1: CD with the exact score\nfinds the consistency function"),
    (("Theorem 2",), "Theorem 2: CT and CD with the exact score\nhave the same loss up to o(Δt)"),
    (("Theorem 3", "Theorem 4"), "Theorems 3 and 4: the loss in continuous\ntime, θ⁻ = θ"),
    (("Theorem 5", "Theorem 6"), "Theorems 5 and 6: the gradient in continuous\ntime, θ⁻ = stopgrad(θ)"),
)
COLUMNS = ("theorem", "quantity", "case", "data", "measured order", "expected order", "holds", "intervals", "errors")


def orders_figure(curves: Sequence[Curve], out_dir: Path) -> list[Path]:
    """orders.png and orders.svg: errors against N - 1 on log axes, a panel for each kind of statement."""
    datasets = list(dict.fromkeys(c.data for c in curves))
    with rc():
        figure = new_figure(10, 8.4)
        axes = figure.subplots(2, 2, squeeze=True).flat
        for ax, (theorems, title) in zip(axes, PANELS, strict=True):
            shown = [c for c in curves if c.theorem in theorems]
            labels = list(dict.fromkeys(c.label for c in shown))
            for curve in shown:
                ax.loglog(
                    curve.intervals,
                    curve.errors,
                    color=PALETTE[labels.index(curve.label) % len(PALETTE)],
                    marker=MARKERS[datasets.index(curve.data) % len(MARKERS)],
                    linestyle="-" if datasets.index(curve.data) == 0 else "--",
                    markersize=4,
                    linewidth=1.2,
                    label=f"{curve.label}, {curve.data}: order {curve.order:.2f} (theory {curve.expected:g})",
                )
            for order in sorted({c.expected for c in shown}):
                start = max(c.errors[0] for c in shown if c.expected == order) * 1.6
                ends = (shown[0].intervals[0], shown[0].intervals[-1])
                ax.loglog(
                    ends, [start, start * (ends[0] / ends[1]) ** order], color=MUTED, linewidth=0.8, linestyle=":"
                )
                at = (ends[1], start * (ends[0] / ends[1]) ** order)
                ax.annotate(f"slope −{order:g}", at, fontsize=LABEL_SIZE, color=MUTED, va="bottom", ha="right")
            ax.set_title(title, fontsize=TITLE_SIZE, loc="left")
            ax.set_xlabel("intervals N − 1")
            ax.set_ylabel(" or ".join(dict.fromkeys(c.quantity for c in shown)), fontsize=LABEL_SIZE)
            ax.set_xticks(shown[0].intervals, [str(n) for n in shown[0].intervals])
            ax.minorticks_off()
            tidy(ax)
            ax.legend(fontsize=LABEL_SIZE - 0.5, frameon=False, loc="lower left")
        figure.tight_layout()
        return save(figure, out_dir, "orders")


def orders_table(curves: Sequence[Curve], out_dir: Path) -> Path:
    """orders.csv: one row per curve."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for c in curves:
        numbers = (" ".join(map(str, c.intervals)), " ".join(f"{e:.6g}" for e in c.errors))
        measured = (f"{c.order:.4f}", f"{c.expected:g}", "yes" if c.holds else "no")
        writer.writerow([c.theorem, c.quantity, c.label, c.data, *measured, *numbers])
    out_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(out_dir / "orders.csv", text.getvalue())
    return out_dir / "orders.csv"
