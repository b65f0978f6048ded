"""`cmray search`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cmray.cli.console import errors, print_json, say
from cmray.cli.measuring import Actors, Metric, NumSamples, note, setting, subject_of
from cmray.cli.options import (
    DEFAULT_STORAGE,
    Address,
    Json,
    Storage,
    TrackingUri,
    Weights,
    command,
    mlflow_command,
    numbers,
)
from cmray.core.protocol import BLOCK

if TYPE_CHECKING:
    from pathlib import Path

    from cmray.config.experiment import SearchConfig
    from cmray.engine.results import Subject
    from cmray.tracking.records import Evaluation, Search


def search(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="EXPERIMENT/TRIAL, a trial's name, or its beginning, an MLflow run id, or a checkpoint folder. "
            "Several models of one dataset are searched together.",
            show_default=False,
        ),
    ],
    nfe: Annotated[str, typer.Option("--nfe", metavar="2,3", help="Budgets whose times are searched.")] = "2",
    num_sigmas: Annotated[
        int | None, typer.Option("--num-sigmas", min=3, help="Points of the grid; default the model's own N.")
    ] = None,
    metric: Metric = "fd/digits",
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="ternary; section: as many candidates at once as --parallel serves; exhaustive: the whole grid; "
            "continuous: log sigma, no grid; reference: the paper's code, which misses either end of the grid.",
        ),
    ] = "ternary",
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="How finely continuous resolves log sigma; default 0.05.")
    ] = None,
    confirm: Annotated[
        int | None,
        typer.Option("--confirm", metavar="N", help="Measure times within the noise of the best again on N samples."),
    ] = None,
    num_samples: NumSamples = 10_000,
    weights: Weights = None,
    parallel: Actors = 1,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Search the sampling times of consistency models, one time after the other.

    Example: cmray search quickstart/cd-1a2b3c --nfe 2,3 --mode section --parallel 2
    """
    from cmray.cli.progress import Progress
    from cmray.cluster.mirror_models import ModelMirror
    from cmray.core.errors import StorageError
    from cmray.engine.remote_sync import share
    from cmray.engine.results import evaluate as measure
    from cmray.engine.results import recorded
    from cmray.engine.searching import SearchOf, search_grid, search_together, searched_measurement
    from cmray.report.searches import search_picture

    config = _config(nfe, num_sigmas, num_samples, mode, tolerance, confirm)
    storage = storage.expanduser().absolute()
    models = _models(runs, storage, tracking_uri, weights)
    for who in models.values():
        for n in config.nfe:
            search_grid(who.run, config, n)  # says now if it has too few points
    progress = Progress(errors)
    mirror = ModelMirror([who.folder for who in models.values()], storage, tracking_uri, progress.warn)
    with setting(next(iter(models.values())), metric, parallel, address, storage) as (reference, pool):
        found, remarks = [], []  # found: (run, its search, the reported number)
        try:
            for n in config.nfe:
                title, done = f"Searching {n - 1} time{'s' if n > 2 else ''}", dict.fromkeys(models, 0)
                if len(models) > 1:
                    title += f" of {len(models)} models"
                searches = {run: SearchOf(who, config, n, reference, pool.size, BLOCK) for run, who in models.items()}
                names = {id(s): run for run, s in searches.items()}

                def told(search: SearchOf, count: int, *_: float, title=title, done=done, names=names) -> None:
                    done[names[id(search)]] = count
                    progress.task(title, sum(done.values()), None)

                results = search_together(list(searches.values()), pool, told)
                finals = [
                    searched_measurement(who, result, num_samples, BLOCK)
                    for who, result in zip(models.values(), results, strict=True)
                ]
                measure(finals, reference, pool)
                found += zip(models, results, [recorded(final, reference) for final in finals], strict=True)
                remarks += [s.remark for s in searches.values()]
        finally:
            progress.close()
        pictures = []
        for run, who in models.items():
            try:
                pictures.append(search_picture(who.folder, run))
            except StorageError as error:  # of another search of this model; this one is told all the same
                progress.warn(str(error))
        share([who.folder for who in models.values()])
        seen = mirror.send()
        if as_json:
            print_json(
                [
                    {
                        "run": run,
                        "reported": number.value,
                        "reported_low": number.low,
                        "reported_high": number.high,
                        **s.model_dump(mode="json"),
                    }
                    for run, s, number in found
                ]
            )
            return
        for (run, s, number), remark in zip(found, remarks, strict=True):
            _show(f"{run}, " if len(models) > 1 else "", s, number)
            if remark:
                say(remark)
        if unknown := unknown_noise([s for _, s, _ in found]):
            say(unknown)
        say(note(found[0][1].provenance.metric, reference))
        for picture in filter(None, pictures):
            say(f"picture: {picture}")
        if seen:
            say(f"MLflow: {mlflow_command(tracking_uri, storage, seen)}")
        run, last, _ = found[-1]
        say(f"next: {command('sample', run, '--times', _times(last), '--out', 'samples.png', storage=storage)}")


def _show(of: str, s: Search, number: Evaluation) -> None:
    """Which times were found, what they are worth, and which others may be as good."""
    between = "" if number.low is None else f" ({number.low:.3f} to {number.high:.3f})"
    say(
        f"{of}{s.nfe} NFE: times {_times(s)}  {s.provenance.metric} {number.value:.3f}{between} on fresh seeds, "
        f"{s.value:.3f} while searching ({len(s.points)} evaluations)"
    )
    for line in rivals(s):
        say(line)


def rivals(s: Search) -> list[str]:
    """Which times may be as good as the chosen ones, a sentence for each number of samples that says so."""
    lines, start = [], 0
    for time, count in zip(s.times[1:], s.rounds, strict=True):
        tied = [p for p in s.points[start : start + count] if p.tied]
        start += count
        again = [p.sigma for p in tied if p.confirmed is not None]
        once = [p.sigma for p in tied if p.confirmed is None]
        aside = "" if s.confirm_samples is None else ", which were not measured again"
        for n, sigmas, more in ((s.confirm_samples, again, ""), (s.provenance.n, once, aside)):
            if sigmas and n is not None:
                others = ", ".join(f"{t:.4g}" for t in sorted(sigmas, reverse=True))
                lines.append(f"on {n:,} samples {time:.4g} cannot be told apart from {others}{more}")
    return lines


def unknown_noise(searches: list[Search]) -> str:
    """Says that nobody knows which times are as good; empty where that is known."""
    from cmray.engine.searching import least_for_noise

    for s in searches:
        least = least_for_noise(s.provenance.seed_block)
        if s.provenance.n < least:
            return f"the noise of these values is not known: it takes more than {least - 1:,} samples"
    return ""


def _times(s: Search) -> str:
    return ",".join(f"{t:.4g}" for t in s.times)


def _config(
    nfe: str, num_sigmas: int | None, num_samples: int, mode: str, tolerance: float | None, confirm: int | None
) -> SearchConfig:
    """The options as a config; raises ConfigError with the option that is wrong."""
    budgets = numbers(nfe, "--nfe", int) or []
    from pydantic import ValidationError

    from cmray.config.experiment import SearchConfig
    from cmray.core.errors import ConfigError

    given: dict[str, object] = {
        "nfe": tuple(budgets),
        "num_sigmas": num_sigmas,
        "num_samples": num_samples,
        "mode": mode,
        "tolerance": tolerance,
        "confirm_samples": confirm,
    }
    try:
        config = SearchConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        text = first["msg"].removeprefix("Value error, ")
        shown = {
            "mode": f"--mode {mode}",
            "tolerance": f"--tolerance {tolerance}",
            "confirm_samples": f"--confirm {confirm}",
            "num_sigmas": f"--num-sigmas {num_sigmas}",
        }
        field = str(first["loc"][0]) if first["loc"] else next((name for name in shown if text.startswith(name)), "nfe")
        raise ConfigError(f"{shown.get(field, f'--nfe {nfe}')}: {text}") from None
    from cmray.engine.searching import least_for_noise

    least = least_for_noise(BLOCK)
    if confirm is not None and num_samples < least:
        raise ConfigError(
            f"--confirm {confirm}: on --num-samples {num_samples} the noise is not known, which decides what is "
            f"measured again; it takes more than {least - 1:,} samples"
        )
    return config


def _models(runs: list[str], storage: Path, tracking_uri: str | None, weights: str | None) -> dict[str, Subject]:
    """The consistency models that are named, all of one dataset. Raises CmrayError."""
    from cmray.core.errors import CmrayError

    models: dict[str, Subject] = {}
    for run in runs:
        who = subject_of(run, storage, tracking_uri, weights)
        if who.kind != "consistency":
            raise CmrayError(f"{run} is a {who.kind} model; sampling times are searched for consistency models")
        for other, known in models.items():
            if known.checkpoint == who.checkpoint:
                raise CmrayError(f"{run} and {other} are the same model; name each once")
            if known.run.data != who.run.data:
                raise CmrayError(
                    f"{run} was trained on other data than {other}; search models of one dataset together, others apart"
                )
        models[run] = who
    return models
