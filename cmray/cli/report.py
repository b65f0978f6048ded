"""`cmray report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmray.cli.console import output, print_json, say
from cmray.cli.options import DEFAULT_STORAGE, Json, Storage

if TYPE_CHECKING:
    from cmray.tracking.records import ExperimentRecord


def report(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Name of an experiment.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default is the experiment's own.")] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Write table and figures of an experiment from its records, finished or not.

    Example: cmray report quickstart --out report
    """
    from cmray.report.build import summary_sentences, write_report
    from cmray.report.load import load_experiment

    storage = storage.expanduser().absolute()
    record = load_experiment(storage, experiment)
    files = write_report(record, out or record.folder / "report")
    if as_json:
        print_json({"files": {k: str(v) for k, v in files.items()}, "sentences": summary_sentences(record)})
        return
    show_record(record)
    for name, path in files.items():
        say(f"{name:>12}: {path}")


def show_record(record: ExperimentRecord) -> None:
    """The table of an experiment and what its numbers say."""
    from cmray.report.build import summary_sentences
    from cmray.report.tables import fd_table, footnotes, rich_table

    width = max(80, min(output.width, 140))
    output.print(rich_table(fd_table(record), title=record.name, notes=footnotes(record), width=width))
    for sentence in summary_sentences(record):
        say(f"• {sentence}")
