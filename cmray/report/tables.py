"""The experiment as a table: pandas for machines, Markdown, CSV and LaTeX for papers, rich for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from cmray.report.columns import (
    Column,
    extractors_of,
    is_flagged,
    one_step_column,
    times_label,
    value_columns,
)
from cmray.report.compare import Comparison
from cmray.report.notes import few_notes, metric_note, protocol_notes
from cmray.tracking.decisions import in_words
from cmray.tracking.records import Evaluation, ExperimentRecord, TrialRecord

if TYPE_CHECKING:
    from rich.table import Table

FLAG = "†"


def fd_table(experiment: ExperimentRecord) -> pd.DataFrame:
    """One row per trial: teachers first, then trials from the best one step to the worst, then those without one.

    Columns: label; of a comparison, experiment; role, panels, objective, steps, minutes; one float column per metric,
    NFE and kind of times (`fd/digits · 2 NFE (80, 0.8)`, `... searched`), each searched one followed by `...: times`;
    status; †.

    Values whose provenance differs in more than the model and its sampler get columns of their own, whose headers
    name what differs. Missing values are NaN; so are those that were evaluated and are not a number (see footnotes).

    A value column with 95% intervals is followed by `...: low` and `...: high`. Over several blocks of seeds a value is
    their mean.

    `attrs` of the frame: "values", the headers of value columns; "higher", those where more is better; "bounds", the
    columns of intervals; "metric", the experiment's metric.
    """
    columns = value_columns(experiment)
    ranking = one_step_column(experiment, columns)
    extractors = extractors_of(experiment)
    compared = isinstance(experiment, Comparison)
    bounded = [column for column in columns if any(cell.low is not None for cell in column.cells.values())]

    def order(row: int) -> tuple[object, ...]:
        trial = experiment.trials[row]
        value = ranking.value(row) if ranking else math.nan
        if ranking and not ranking.lower_is_better:
            value = -value
        return (trial.role != "teacher", math.isnan(value), 0.0 if math.isnan(value) else value, trial.label)

    rows = []
    for row in sorted(range(len(experiment.trials)), key=order):
        trial = experiment.trials[row]
        flag = FLAG if is_flagged(trial, extractors) else ""
        if flag and len(extractors) > 1:
            flag = f"{FLAG} {trial.trained_in_features_of}"
        cells: dict[str, Any] = {
            "label": experiment.plain[row] if compared else trial.label,
            "experiment": ", ".join(experiment.sources[row]) if compared else "",
            "role": trial.role,
            "panels": ", ".join(trial.panels),
            "objective": trial.objective,
            "steps": _steps(trial),
            "minutes": trial.result.seconds / 60 if trial.result else math.nan,
        }
        for column in columns:
            cells[column.header] = column.value(row)
            cell = column.cells.get(row)
            if column in bounded:
                cells[f"{column.header}: low"] = cell.low if cell else None
                cells[f"{column.header}: high"] = cell.high if cell else None
            if column.searched:
                cells[column.times_header] = times_label(cell.provenance.times) if cell else ""
        rows.append({**cells, "status": trial.status, FLAG: flag})

    names = ["label", *(["experiment"] if compared else []), "role", "panels", "objective", "steps", "minutes"]
    for column in columns:
        names.append(column.header)
        names += [f"{column.header}: low", f"{column.header}: high"] if column in bounded else []
        names += [column.times_header] if column.searched else []
    frame = pd.DataFrame(rows, columns=pd.Index([*names, "status", FLAG]))
    frame["steps"] = frame["steps"].astype("Int64")
    bounds = [f"{column.header}: {end}" for column in bounded for end in ("low", "high")]
    frame[bounds] = frame[bounds].astype("float64")
    frame.attrs["bounds"] = bounds
    frame.attrs["values"] = [column.header for column in columns]
    frame.attrs["higher"] = [column.header for column in columns if not column.lower_is_better]
    frame.attrs["metric"] = experiment.metric
    return frame


def footnotes(experiment: ExperimentRecord) -> list[str]:
    """What a reader must know beside the numbers: protocol, flags, searched times, what is missing. Sentences."""
    columns = value_columns(experiment)
    notes = []
    protocols = {c.protocol: next(iter(c.cells.values())).provenance for c in columns}
    notes += dict.fromkeys(metric_note(p) for p in protocols.values())
    notes += protocol_notes(list(protocols.values()))
    notes += few_notes(list(protocols.values()))
    notes += _block_notes(columns, experiment)
    if any(c.searched for c in columns):
        notes.append(f"searched: each row's own times, {_search_seeds(experiment)}.")
    flagged = [t.trained_in_features_of for t in experiment.trials if is_flagged(t, extractors_of(experiment))]
    for extractor in dict.fromkeys(flagged):
        notes.append(
            f"{FLAG} trained with a distance in the features that fd/{extractor} measures in, "
            "which favours the row: compare with care."
        )
    for column in columns:
        lost = [experiment.trials[r].label for r, cell in column.cells.items() if not math.isfinite(cell.value)]
        if lost:
            notes.append(f"{column.header} is not a finite number for {', '.join(lost)}.")
    for status in sorted({trial.status for trial in experiment.trials} - {"finished"}):
        labels = [_with_reason(trial) for trial in experiment.trials if trial.status == status]
        if labels:
            separator = "; " if any(": " in label for label in labels) else ", "
            more = f" and {len(labels) - 5} more" if labels[5:] else ""
            notes.append(f"{status}: {separator.join(labels[:5])}{more}.")
    return notes


def _with_reason(trial: TrialRecord) -> str:
    """The label, and in a few words why there is no result."""
    if trial.stopped is not None:
        return f"{trial.label} {in_words(trial.stopped)}"
    reason = next(iter((trial.error or "").splitlines()), "").strip()
    return f"{trial.label}: {reason}" if reason else trial.label


def to_csv(frame: pd.DataFrame) -> str:
    """Full precision, one header line, missing values empty."""
    return frame.to_csv(index=False, lineterminator="\n")


def to_markdown(frame: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """A GitHub table, the best value of each column bold, `notes` as a list below."""
    header, body, numeric = text_cells(frame, bold="**{}**", intervals=True)
    lines = [header, ["---:" if number else ":---" for number in numeric], *body]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return text + "\n" + "".join(f"\n- {note}" for note in notes) + ("\n" if notes else "")


def rich_table(frame: pd.DataFrame, *, title: str | None = None, notes: Sequence[str] = (), width: int = 100) -> Table:
    """The frame for a terminal `width` columns wide (80 at least), best values bold, `notes` as its caption.

    Where it does not fit it leaves out panels, objective, minutes, steps, status, then value columns from the
    right, and says which; † joins its row's label and teachers are set apart by a line.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    shown = _fitting(frame, width)
    left_out = [name for name in frame.attrs["values"] if name not in shown]
    if left_out:
        notes = [*notes, f"{len(left_out)} more value columns do not fit here: {'; '.join(left_out)}."]
    header, body, numeric = text_cells(frame, bold="\0{}\1", names=shown)
    heading = escape(title) if title else None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=heading, title_style="bold")
    table.caption = Text("\n".join(notes)) if notes else None
    table.caption_justify = "left"
    for name, number in zip(header, numeric, strict=True):
        text = _terminal_header(name, frame.attrs["metric"])
        table.add_column(escape(text), justify="right" if number else "left", vertical="top", no_wrap=number,
                         overflow="fold", min_width=12 if name == "label" else None)  # fmt: skip
    teachers = list(frame["role"]).count("teacher")
    for row, cells in enumerate(body):
        flag = str(frame[FLAG].iloc[row])
        texts = [Text(c.strip("\0\1"), style="bold" if c.startswith("\0") else "") for c in cells]
        if flag:
            texts[0].append(f" {flag}", style="yellow")
        table.add_row(*texts, end_section=row + 1 == teachers and row + 1 < len(body))
    return table


def format_value(value: float) -> str:
    """`2.53`, `0.00123`, `–` for a missing value."""
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if value == 0 or abs(value) >= 1 else f"{value:.3g}"


def _steps(trial: TrialRecord) -> int | None:
    if trial.result:
        return trial.result.steps
    return trial.events[-1].step if trial.events else None


def _block_notes(columns: Sequence[Column], experiment: ExperimentRecord) -> list[str]:
    """Minimum and spread of values over several blocks of seeds."""
    notes = []
    for column in columns:
        said = [
            f"{experiment.trials[row].label} {format_value(cell.best)} ± {cell.spread:.2g}"
            for row, cell in column.cells.items()
            if cell.best is not None and cell.spread is not None
        ]
        if said:
            notes.append(
                f"{column.header} is a mean over blocks of seeds; the best of them ± spread: {'; '.join(said)}."
            )
    return notes


def format_interval(evaluation: Evaluation) -> str:
    """`3.670 [3.550, 3.800]`; over several blocks of seeds `3.670 ± 0.080, min 3.590 (3 blocks)` with their spread."""
    e = evaluation

    def number(value: float) -> str:
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"

    if e.spread is not None and e.best is not None:
        best = f"{'min' if e.better == 'lower' else 'max'} {number(e.best)}"
        return f"{number(e.value)} ± {number(e.spread)}, {best} ({len(e.blocks)} blocks)"
    if e.low is None or e.high is None:
        return number(e.value)
    return f"{number(e.value)} [{number(e.low)}, {number(e.high)}]"


def _search_seeds(experiment: ExperimentRecord) -> str:
    """Whether the times were chosen on other samples than the reported ones, as far as the records tell."""
    overlap = found = False
    for trial in experiment.trials:
        for search in trial.searches:
            for p in (cell.provenance for cell in trial.evaluations if cell.provenance.searched):
                q = search.provenance
                found = True
                ends = [one.seed_first + one.n * one.seed_blocks for one in (p, q)]
                overlap |= p.seed_first < ends[1] and q.seed_first < ends[0]
    if not found:
        return "found by a search whose records are missing"
    if overlap:
        return "chosen on seeds that overlap those of the reported values, which favours them"
    return "chosen on seeds that the reported values do not use"


def best_rows(frame: pd.DataFrame, name: str) -> set[int]:
    """Positions of the best finite value; none where there is nothing to compare."""
    values = [float(v) for v in frame[name]]
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < 2:
        return set()
    best = max(finite) if name in frame.attrs["higher"] else min(finite)
    return {row for row, value in enumerate(values) if value == best}


def text_cells(
    frame: pd.DataFrame, bold: str, names: Sequence[str] | None = None, intervals: bool = False
) -> tuple[list[str], list[list[str]], list[bool]]:
    """Header, body and which columns are numbers; best values are put through `bold`, intervals follow theirs."""
    names = [name for name in (frame.columns if names is None else names) if name not in frame.attrs["bounds"]]
    values = set(frame.attrs["values"])
    columns = []
    for name in names:
        if name in values:
            best = best_rows(frame, name)
            texts = [format_value(float(v)) for v in frame[name]]
            texts = [bold.format(t) if row in best else t for row, t in enumerate(texts)]
            if intervals and f"{name}: low" in frame.attrs["bounds"]:
                ends = zip(frame[f"{name}: low"], frame[f"{name}: high"], strict=True)
                pairs = [(float(low), float(high)) for low, high in ends]
                texts = [
                    t if math.isnan(low) else f"{t} [{format_value(low)}, {format_value(high)}]"
                    for t, (low, high) in zip(texts, pairs, strict=True)
                ]
            columns.append(texts)
        elif name == "steps":
            columns.append(["–" if pd.isna(v) else f"{int(v):,}" for v in frame[name]])
        elif name == "minutes":
            columns.append(["–" if pd.isna(v) else f"{float(v):.1f}" for v in frame[name]])
        else:
            columns.append([str(v) for v in frame[name]])
    body = [[column[row] for column in columns] for row in range(len(frame))]
    return names, body, [name in values or name in ("steps", "minutes") for name in names]


def _terminal_header(name: str, metric: str) -> str:
    """Stacked, and without the metric's name where it is the experiment's own: the title says it."""
    if name.endswith(": times"):
        return "times"
    parts = [part for part in name.split(" · ") if part != metric]
    return (
        "\n".join(parts)
        .replace(" NFE ", " NFE\n")
        .replace(" from ", "\nfrom ")
        .replace(", n=", "\nn=")
        .replace(", seeds", "\nseeds")
    )


def _fitting(frame: pd.DataFrame, width: int) -> list[str]:
    """Columns of the terminal table, the least needed left out until it fits."""
    shown = [name for name in frame.columns if name not in ("role", FLAG, *frame.attrs["bounds"])]
    droppable = ["panels", "objective", "minutes", "steps", "status"]  # footnotes name what has not finished
    # searched values stay longest, and their times never outlive them
    last_first = list(frame.attrs["values"])[::-1]
    for header in sorted(last_first, key=lambda name: f"{name}: times" in frame.columns):
        droppable += [header, f"{header}: times"]
    needed = {}
    header, body, _ = text_cells(frame, bold="{}", names=shown)
    for i, name in enumerate(header):
        widest = max((len(row[i]) for row in body), default=0)
        # A long label may wrap; numbers, times and the words of a header may not.
        title = max(len(part) for part in _terminal_header(name, frame.attrs["metric"]).split("\n"))
        needed[name] = max(min(widest + 2, 40) if name == "label" else widest, title) + 3
    for name in droppable:
        if sum(needed[n] for n in shown) <= width:
            break
        # One value column stays whatever the width: a table without any would say nothing.
        if name in shown and name != next(iter(frame.attrs["values"]), None):
            shown.remove(name)
            if f"{name}: times" in shown:
                shown.remove(f"{name}: times")
    return shown
