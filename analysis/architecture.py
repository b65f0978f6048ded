"""Draws the rooms of cmray on their floors, and who imports whom, from the imports that are really there.

    python analysis/architecture.py

writes docs/images/architecture.json and architecture.png. A test compares them with the tree.
"""

from __future__ import annotations

import ast
import hashlib
import json
import textwrap
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "images" / "architecture"

#: a colour for each floor, from the ground up: its rooms, and a lighter one for its band
FLOORS = (
    ("#33658A", "#E6EEF4"),
    ("#2A7F86", "#E3F1F1"),
    ("#3C8D5A", "#E5F2EA"),
    ("#9A7B1F", "#F6F0DC"),
    ("#B5562B", "#F9E9E1"),
    ("#8B3A62", "#F4E5EC"),
)
INK, SOFT, LINE = "#222222", "#5A5A5A", "#8C8C8C"

#: what a room is for, in a few words that fit into its box
PURPOSES = {
    "core": "grids, curricula, preconditioning, weights, distances, EMA, random numbers; registry, plug-ins, files",
    "solvers": "one step of the ODE",
    "nn": "raw networks",
    "objectives": "from a batch to losses",
    "samplers": "from noise to images",
    "editing": "what of an image is known",
    "datasets": "images and their shards",
    "metrics": "features, distances",
    "stopping": "rules that end trials",
    "config": "experiment files: typed, merged, expanded, named by their content",
    "engine": "train, save, sample, measure in one process",
    "search": "sampling times: ask, tell",
    "tracking": "records and their mirrors",
    "theory": "the theorems, measured",
    "report": "tables, figures, pages",
    "exchange": "foreign weights, in and out",
    "cluster": "all that is Ray's",
    "studio": "models in the browser",
    "cli": "the command line",
}


def imports() -> dict[str, Any]:
    """What the tree says: layers from the top, and for each room its floor and the rooms that it imports.

    An import counts wherever it stands, also inside a function or for types only.
    """
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [
        [room.strip().removeprefix("cmray.") for room in layer.split(":")]
        for layer in next(c for c in contracts if c["type"] == "layers")["layers"]
    ]
    rooms = {}
    for room in (room for layer in layers for room in layer):
        found = [_rooms_imported(path) for path in (ROOT / "cmray" / room).rglob("*.py")]
        rooms[room] = {"floor": _floor(room), "imports": sorted(set().union(*found) - {room})}
    return {"layers": layers, "rooms": rooms}


def _floor(room: str) -> int:
    first = ast.get_docstring(ast.parse((ROOT / "cmray" / room / "__init__.py").read_text())) or ""
    if not (first[:1] == "F" and first[1:2].isdigit() and first[2:3] == ":"):
        raise SystemExit(f"cmray/{room}/__init__.py must begin with its floor, such as F2:")
    return int(first[1])


def _rooms_imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "cmray":
            names = [f"cmray.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("cmray.")}
    return {room for room in found if (ROOT / "cmray" / room / "__init__.py").exists()}


def digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def draw(data: dict[str, Any], file: Path) -> None:
    """A picture of 1,950 x 1,157 pixels: the floors on the left, the table of imports on the right."""
    from cmray.report.style import new_figure, rc

    with rc():
        figure = new_figure(15.0, 8.9)
        _floors(figure.add_axes((0.012, 0.015, 0.585, 0.893)), data)
        _matrix(figure.add_axes((0.672, 0.05, 0.318, 0.77)), data)
        figure.text(0.018, 0.952, "The rooms of cmray", fontsize=15, weight="bold", color=INK)
        figure.text(0.018, 0.922, "each stands on those below it; an import never goes up", fontsize=10, color=SOFT)
        figure.text(0.614, 0.952, "Who imports whom", fontsize=15, weight="bold", color=INK)
        figure.text(0.614, 0.922, "a square: the room of the row imports that of the column", fontsize=10, color=SOFT)
        figure.savefig(file, dpi=130, metadata={"Software": "cmray", "Description": digest(data)})


def _floors(axes: Any, data: dict[str, Any]) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.axis("off")
    layers, rooms = data["layers"], data["rooms"]
    height, gap = 100 / len(layers), 1.1
    bands: dict[int, list[float]] = {}
    boxes = []
    for level, layer in enumerate(layers):
        bottom = 100 - (level + 1) * height
        floor = rooms[layer[0]]["floor"]
        bands.setdefault(floor, []).append(bottom)
        width = (100 - 7.5 - 1.2 * (len(layer) + 1)) / len(layer)
        for i, room in enumerate(layer):
            boxes.append((7.5 + 1.2 + i * (width + 1.2), bottom, width, room))
    for floor, bottoms in bands.items():
        low, high = min(bottoms), max(bottoms) + height
        strong, light = FLOORS[floor]
        shape = FancyBboxPatch(
            (0.4, low + gap / 2), 99.2, high - low - gap, boxstyle="round,pad=0,rounding_size=1.2", fc=light, ec="none"
        )
        axes.add_patch(shape)
        axes.text(
            4.2, (low + high) / 2, f"F{floor}", ha="center", va="center", fontsize=17, weight="bold", color=strong
        )
    for left, bottom, width, room in boxes:
        strong, _ = FLOORS[rooms[room]["floor"]]
        y, tall = bottom + 1.9, height - 3.8
        shape = FancyBboxPatch(
            (left, y), width, tall, boxstyle="round,pad=0,rounding_size=0.9", fc="white", ec=strong, lw=1.4
        )
        axes.add_patch(shape)
        axes.text(
            left + 1.1, y + tall - 1.1, room, va="top", fontsize=12 if width > 20 else 11, weight="bold", color=strong
        )
        words = textwrap.fill(PURPOSES[room], max(13, int(width * 1.16)))
        axes.text(left + 1.1, y + tall - 4.3, words, va="top", fontsize=8.6, color=INK, linespacing=1.25)


def _matrix(axes: Any, data: dict[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    rooms = data["rooms"]
    names = [room for layer in data["layers"] for room in layer]
    n = len(names)
    axes.set_xlim(0, n)
    axes.set_ylim(n, 0)
    axes.set_aspect("equal", anchor="N")
    level = {room: i for i, layer in enumerate(data["layers"]) for room in layer}
    for row, room in enumerate(names):
        strong, light = FLOORS[rooms[room]["floor"]]
        axes.add_patch(
            Rectangle((0, row), n, 1, fc=light if row % 2 == 0 else "white", ec="none", alpha=0.55, zorder=0)
        )
        for column, other in enumerate(names):
            if room == other:
                axes.add_patch(Rectangle((column, row), 1, 1, fc="#C9C9C9", ec="none"))
            elif other in rooms[room]["imports"]:
                axes.add_patch(Rectangle((column + 0.08, row + 0.08), 0.84, 0.84, fc=strong, ec="none"))
            elif level[other] < level[room]:
                axes.add_patch(Rectangle((column, row), 1, 1, fc="white", ec="none"))
    for i in range(1, n):
        if level[names[i]] != level[names[i - 1]]:
            axes.plot([0, n], [i, i], color=LINE, lw=0.7)
            axes.plot([i, i], [0, n], color=LINE, lw=0.7)
    axes.set_yticks([i + 0.5 for i in range(n)], names, fontsize=10)
    axes.set_xticks([i + 0.5 for i in range(n)], names, fontsize=10, rotation=60, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=3)
    for label, room in zip([*axes.get_yticklabels(), *axes.get_xticklabels()], names * 2, strict=True):
        label.set_color(FLOORS[rooms[room]["floor"]][0])
    for spine in axes.spines.values():
        spine.set_color(LINE)
    axes.text(0, n + 0.9, "White below the blocks of the diagonal: nothing imports upwards.", fontsize=9.5, color=SOFT)


def main() -> None:
    data = imports()
    OUT.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    draw(data, OUT.with_suffix(".png"))
    print(OUT.with_suffix(".png"))


if __name__ == "__main__":
    main()
