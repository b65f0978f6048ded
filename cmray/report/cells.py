"""Tables as a page shows them: texts, what they are sorted by, and which are best."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from cmray.report.tables import FLAG, best_rows, format_value


@dataclass(frozen=True)
class Cell:
    text: str
    small: str = ""  # below the text
    sort: str = ""  # a number with all its digits, where the text is not what to sort by
    kind: str = ""  # classes


@dataclass(frozen=True)
class Grid:
    """A table: its columns with whether they are numbers, and its rows with their classes."""

    columns: list[tuple[str, bool]]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)

    @property
    def sortable(self) -> bool:
        return sum("total" not in kind for kind, _ in self.rows) > 1


def fd_grid(frame: pd.DataFrame) -> Grid:
    """Of `tables.fd_table`: † joins its label, intervals stand below their value, teachers and statuses are marked."""
    bounds, values = set(frame.attrs["bounds"]), set(frame.attrs["values"])
    names = [name for name in frame.columns if name not in bounds and name not in ("role", FLAG)]
    best = {name: best_rows(frame, name) for name in values}
    rows = []
    records: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    for i, row in enumerate(records):
        cells = []
        for name in names:
            value = row[name]
            if name in values:
                low, high = (row.get(f"{name}: {end}", math.nan) for end in ("low", "high"))
                small = "" if pd.isna(low) or pd.isna(high) else f"{format_value(low)} to {format_value(high)}"
                cells.append(_number(value, format_value(float(value)), small, "best" if i in best[name] else ""))
            elif name == "label":
                small = "teacher" if row["role"] == "teacher" else ""
                cells.append(Cell(" ".join(part for part in (str(value), str(row[FLAG])) if part), small))
            elif name == "status":
                cells.append(Cell(str(value), kind=status_kind(str(value))))
            elif name == "steps":
                cells.append(_number(value, "" if pd.isna(value) else f"{int(value):,}"))
            elif name == "minutes":
                cells.append(_number(value, "" if pd.isna(value) else f"{float(value):.1f}"))
            else:
                cells.append(Cell(str(value)))
        rows.append(("teacher" if row["role"] == "teacher" else "", cells))
    return Grid([(name, name in values or name in ("steps", "minutes")) for name in names], rows)


def status_kind(status: str) -> str:
    """The class of a status, also of one that is not known yet."""
    return "status status-" + re.sub(r"[^a-z]+", "-", status.lower())


def frame_grid(
    frame: pd.DataFrame, formats: dict[str, Callable[[Any], str]] | None = None, total: str | None = None
) -> Grid:
    """Of any frame: numbers right, columns that tell nothing left out, the index first where it has a name.

    Args:
        formats: of columns of numbers; others get four significant digits.
        total: the label of a row at the end that sums the others.
    """
    if frame.index.name:
        frame = frame.reset_index()
    told = [i for i in range(frame.shape[1]) if not all(pd.isna(v) or v == "" for v in list(frame.iloc[:, i]))]
    columns = [
        (str(frame.columns[i]), pd.api.types.is_numeric_dtype(frame.iloc[:, i])) for i in told
    ]  # by position: two trials may have one label
    rows = []
    for row in range(len(frame)):
        cells = []
        for i, (name, numeric) in zip(told, columns, strict=True):
            value = frame.iloc[row, i]
            if numeric:
                cells.append(
                    _number(value, "" if pd.isna(value) else (formats or {}).get(name, "{:.4g}".format)(value))
                )
            else:
                cells.append(Cell("" if pd.isna(value) else str(value)))
        last = row == len(frame) - 1
        rows.append(("total" if last and cells and total is not None and cells[0].text == total else "", cells))
    return Grid(columns, rows)


def _number(value: Any, text: str, small: str = "", kind: str = "") -> Cell:
    known = not pd.isna(value) and math.isfinite(float(value))
    return Cell(text or "–", small, repr(float(value)) if known else "", kind)
