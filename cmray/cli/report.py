"""`cmray report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmray.cli.console import output, print_json, say
from cmray.cli.options import DEFAULT_STORAGE, Json, Storage

if TYPE_CHECKING:
    from cmray.cli.documents import Reported
    from cmray.tracking.records import ExperimentRecord


def report(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Name of an experiment.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default is the experiment's own.")] = None,
    published: Annotated[
        str | None,
        typer.Option(
            "--published",
            metavar="DATA",
            help="Show published numbers for this data, marked as such: cifar10, imagenet64, lsun-bedroom256 or "
            "lsun-cat256. Default: those of the experiment's own data.",
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="OTHER", help="Lay another experiment beside this one. Repeatable."),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Write page, tables and figures of an experiment from its records, finished or not.

    Example: cmray report quickstart --out report
    """
    from cmray.core.errors import CmrayError, UnknownNameError, nearest
    from cmray.engine.remote_sync import refresh, refresh_all, share
    from cmray.report.build import summary_sentences, write_report
    from cmray.report.compare import compare as beside
    from cmray.report.compare import default_folder
    from cmray.report.load import load_experiment
    from cmray.report.published import published_datasets

    storage = storage.expanduser().absolute()
    refresh(storage, [experiment, *(compare or [])])
    if not (storage / experiment / "experiment.json").is_file():
        refresh_all(storage)  # so that the error names those there are
    record = load_experiment(storage, experiment)
    if compare:
        record = beside([record, *(load_experiment(storage, other) for other in compare)])
    if out is not None and out.is_file():
        raise CmrayError(f"--out {out} is a file; name a folder")
    if published is not None and published not in published_datasets():
        raise UnknownNameError(f"--published is '{published}'; {nearest(published, published_datasets())}")
    files = write_report(record, out or default_folder(record), published)
    if out is None:
        share([default_folder(record)])
    if as_json:
        told: Reported = {"files": {k: str(v) for k, v in files.items()}, "sentences": summary_sentences(record)}
        print_json(told)
        return
    show_record(record)
    for name, path in files.items():
        say(f"{name:>13}: {path}")


def show_record(record: ExperimentRecord) -> None:
    """The table of an experiment and what its numbers say."""
    from cmray.report.build import summary_sentences
    from cmray.report.tables import fd_table, footnotes, rich_table

    width = max(80, min(output.width, 140))
    output.print(rich_table(fd_table(record), title=record.name, notes=footnotes(record), width=width))
    for sentence in summary_sentences(record):
        say(f"• {sentence}")
