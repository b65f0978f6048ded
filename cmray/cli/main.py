"""`cmray`: parses the command line and turns errors into one line and an exit code."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import typer

from cmray import __version__
from cmray.cli import (
    data,
    doctor,
    edit,
    evaluate,
    exchange,
    features,
    init,
    jobs,
    report,
    sample,
    search,
    studio,
    sweep,
    theory,
    train,
    ui,
)
from cmray.cli.console import errors
from cmray.cli.exits import BAD_INPUT, DONE, INTERRUPTED
from cmray.core.errors import CmrayError

#: what a wrong command line raises; some versions of typer bring a click of their own, so typer is asked for the class
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="cmray",
    help="Distributed experiments on consistency models: one YAML file in, comparable tables, figures and samples out.",
    epilog="Start with: cmray sweep experiments/quickstart.yaml",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cmray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True, callback=_version),
) -> None:
    pass


app.command("sweep")(sweep.sweep)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("search")(search.search)
app.command("sample")(sample.sample)
app.command("edit")(edit.edit)
app.command("studio")(studio.studio)
app.command("report")(report.report)
app.command("import")(exchange.import_)
app.command("export")(exchange.export)
app.command("theory")(theory.theory)
app.add_typer(data.app, name="data")
app.add_typer(features.app, name="features")
app.add_typer(jobs.app, name="jobs")
app.command("init")(init.init)
app.command("ui")(ui.ui)
app.command("doctor")(doctor.doctor)


def main(argv: list[str] | None = None) -> None:
    """Runs one command, and ends the process with one of the codes of cmray.cli.exits."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(argv, standalone_mode=False)
    except CmrayError as error:
        errors.print(f"[bold red]error:[/] {_plain(str(error))}", soft_wrap=True, highlight=False)
        code = error.exit_code
    except UsageError as error:
        code = BAD_INPUT
        if not error.format_message().strip():  # no command was given, and typer has shown the help
            sys.exit(code)
        command = error.ctx.command_path if error.ctx else "cmray"
        text = f"{error.format_message()} (see `{command} --help`)"
        errors.print(f"[bold red]error:[/] {_plain(text)}", soft_wrap=True, highlight=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        code = DONE
    except OSError as error:
        if error.filename is None:  # not about a file of the user's
            raise
        text = _plain(f"{error.filename}: {error.strerror}")
        errors.print(f"[bold red]error:[/] {text}", soft_wrap=True, highlight=False)
        code = BAD_INPUT
    if code == INTERRUPTED:  # also how typer passes Ctrl-C on
        errors.print("stopped; the same command goes on where this one was", soft_wrap=True, highlight=False)
    sys.exit(code if isinstance(code, int) else DONE)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends like Ctrl-C: nothing is left running."""
    raise KeyboardInterrupt


def _plain(text: str) -> str:
    """One line, with rich's markup taken literally."""
    return " ".join(text.split()).replace("[", r"\[")


if __name__ == "__main__":
    main()
