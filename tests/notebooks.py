"""Notebooks as tests run them: cell by cell, in one namespace, without a kernel."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def execute(path: Path) -> dict[str, Any]:
    """What every cell shows, by its id: the value of its last expression. Raises what a cell raises."""
    namespace: dict[str, Any] = {}
    shown = {}
    for cell in code_cells(path):
        tree = ast.parse("".join(cell["source"]), cell["id"])
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), namespace)
        if last is not None:
            shown[cell["id"]] = eval(compile(ast.Expression(last.value), cell["id"], "eval"), namespace)
    return shown


def is_clean(path: Path) -> bool:
    """Whether a notebook is kept as it should be: without outputs, every cell with an id of its own."""
    cells = json.loads(path.read_text())["cells"]
    unexecuted = all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(path))
    return unexecuted and len({cell["id"] for cell in cells}) == len(cells)
