"""Options that several commands share, and the places they name."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cmray.core.storage import DEFAULT_STORAGE as DEFAULT_STORAGE
from cmray.core.storage import STORAGE_VARIABLE, default_storage

#: registered names, read off the file names: importing the samplers would import torch, which help must not wait for
SAMPLERS = sorted(
    path.stem.replace("_", "-")
    for path in (Path(__file__).parents[1] / "samplers").glob("*.py")
    if path.stem not in ("__init__", "base")
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Experiment file (YAML).", show_default=False)]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="EXPERIMENT/TRIAL, a trial's name, or its beginning, an MLflow run id, or a checkpoint folder.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field, e.g. train.steps=100. Repeatable."),
]
OwnSet = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any field of it, as a plug-in may have. Repeatable."),
]
Overlay = Annotated[
    list[Path] | None,
    typer.Option(
        "--overlay",
        metavar="FILE",
        help="Merge this file over FILE, before --set, e.g. experiments/overlays/digits.yaml. Repeatable.",
    ),
]


def _storage(given: str | Path) -> Path:
    """A storage folder; of a URL, the working copy on this machine."""
    if "://" not in str(given):
        return Path(given)
    from cmray.engine.remote import mount

    return mount(str(given))


Storage = Annotated[
    Path,
    typer.Option(
        "--storage",
        envvar=STORAGE_VARIABLE,
        metavar="FOLDER_OR_URL",
        help="Folder for all results, or a URL such as s3://bucket/folder.",
        show_default=True,
        parser=_storage,
    ),
]


def _hours(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value:g} is no time; give one above 0, such as 0.5")
    return value


Only = Annotated[list[str] | None, typer.Option("--only", metavar="PANEL", help="Run this panel. Repeatable.")]
MaxConcurrent = Annotated[int | None, typer.Option("--max-concurrent", min=1, metavar="N", help="Most trials at once.")]
MaxHours = Annotated[
    float | None,
    typer.Option(
        "--max-hours",
        metavar="H",
        help="Stop cleanly after H hours, such as 0.5, and end with exit code 3; the same command goes on.",
        callback=_hours,
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        metavar="URI",
        help="MLflow store; default is SQLite in the storage folder, 'none' tracks nothing.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDR",
        help="A running Ray cluster: auto or HOST:6379 on a node of it; `cmray sweep` also takes http://HOST:8265 from "
        "anywhere. Default RAY_ADDRESS, else Ray starts here.",
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help=f"How to sample: {', '.join(SAMPLERS)}. Options as YAML: '{{name: edm-heun, S_churn: 40}}'.",
    ),
]
Weights = Annotated[
    str | None, typer.Option("--weights", help="'student' or 'ema RATE'; default the first EMA.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]


def numbers(text: str | None, option: str, kind: type[int] | type[float]) -> list | None:
    """A comma-separated list such as "1,2" as numbers. Raises typer.BadParameter."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} is {text!r}; write numbers separated by commas, such as 1,2") from None


def fields_set(given: Mapping[str, Any], set_: list[str] | None) -> dict[str, Any]:
    """What other options gave, with what --set gives. Raises ConfigError."""
    if not set_:
        return dict(given)
    from cmray.config.load import assignment
    from cmray.core.errors import ConfigError

    found = dict(assignment(item) for item in set_)
    for key in found:
        if key in given:
            raise ConfigError(f"--{key.replace('_', '-')} and --set {key} are both given; give one")
    return {**given, **found}


def sampler_named(text: str | None, has_budget: bool) -> dict[str, Any] | None:
    """The value of --sampler, a name or a mapping in YAML. Raises typer.BadParameter."""
    if text is None:
        return None
    if not has_budget:
        raise typer.BadParameter(f"--sampler {text} needs --nfe, the network evaluations it may take")
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        value = {"name": value}
    if not isinstance(value.get("name"), str):
        raise typer.BadParameter(f"--sampler {text}: write a name, or {{name: NAME, OPTION: VALUE}}")
    return value


def given(context: typer.Context, name: str) -> bool:
    """Whether an option was given, on the command line or by its variable."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def on_command_line(context: typer.Context, parameter: str) -> bool:
    """Whether a parameter was typed, rather than taken from the environment or its default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def same_command(context: typer.Context, without: Collection[str] = ()) -> str:
    """The command line that was given, to copy: what stood on it and nothing that the environment says.

    Args:
        without: parameters that are left out, as the command's function calls them.
    """
    arguments: list[str] = []
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if not on_command_line(context, name) or value is None or name in without:
            continue
        if parameter.param_type_name == "argument":
            arguments.append(str(value))
        elif isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [parameter.opts[0], str(one)]
    return shlex.join(["cmray", context.info_name or "", *arguments, *words])


def shown_storage(storage: Path) -> str:
    """What a person calls a storage folder: its URL where it is the working copy of one."""
    remote = sys.modules.get("cmray.engine.remote")  # without it there is no URL, and importing it takes a while
    return remote.shown(storage) if remote is not None else str(storage.expanduser())


def mlflow_command(tracking_uri: str | None, storage: Path, seen: str | None) -> str | None:
    """What opens MLflow: `cmray ui` for the embedded store, else what the tracker says; None where nothing is seen."""
    return command("ui", storage=storage) if tracking_uri is None and seen else seen


def command(*words: str, storage: Path) -> str:
    """A cmray command to copy, with --storage where the default would look elsewhere."""
    where = shown_storage(storage)
    usual = where == os.environ.get(STORAGE_VARIABLE, "").rstrip("/") or Path(where).absolute() == default_storage()
    place = [] if usual else ["--storage", where]
    return shlex.join(["cmray", *words, *place])
