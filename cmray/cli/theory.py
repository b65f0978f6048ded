"""`cmray theory`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmray.cli.console import output, print_json, say
from cmray.cli.options import DEFAULT_STORAGE, Json, Set, Storage


def theory(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A theory file.", show_default=False)],
    overrides: Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default is STORAGE/NAME.")] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Measure Theorems 1 to 6 of the Consistency Models paper on data whose score is known.

    Ends with code 1 when a measured order of convergence is not the expected one.

    Example: cmray theory experiments/theory.yaml
    """
    from rich.table import Table

    from cmray.report.theory import orders_figure, orders_table
    from cmray.theory.config import load_theory
    from cmray.theory.measure import measure

    config = load_theory(file, overrides or [])
    if config.description and not as_json:
        say(config.description)
    curves = measure(config.theory, lambda what: None if as_json else say(what))
    folder = out or storage.expanduser().absolute() / config.name
    files = [orders_table(curves, folder), *orders_figure(curves, folder)]
    wrong = [c for c in curves if not c.holds]
    if as_json:
        rows = [vars(c) | {"order": c.order, "holds": c.holds} for c in curves]
        print_json({"description": config.description, "curves": rows, "files": [str(f) for f in files]})
    else:
        table = Table(title=config.name, box=None, padding=(0, 2, 0, 0))
        for column in ("theorem", "of", "case", "data", "order", "theory"):
            table.add_column(column, justify="right" if column in ("order", "theory") else "left")
        for c in curves:
            order = f"{c.order:.2f}" if c.holds else f"[red]{c.order:.2f}[/]"
            table.add_row(c.theorem, c.quantity, c.label, c.data, order, f"{c.expected:g}")
        output.print(table)
        say(f"{len(curves) - len(wrong)} of {len(curves)} orders are those of the theory")
        for path in files:
            say(f"written: {path}")
    if wrong:
        raise typer.Exit(1)
