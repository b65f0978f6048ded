"""`cmray search`."""

from __future__ import annotations

from typing import Annotated

import typer

from cmray.cli.console import errors, print_json, say
from cmray.cli.measuring import BLOCK, Metric, NumSamples, Parallel, note, setting, subject_of
from cmray.cli.options import DEFAULT_STORAGE, Address, Json, RunName, Storage, TrackingUri, command, numbers


def search(
    run: RunName,
    nfe: Annotated[str, typer.Option("--nfe", metavar="2,3", help="Budgets whose times are searched.")] = "2",
    num_sigmas: Annotated[
        int | None, typer.Option("--num-sigmas", min=3, help="Points of the grid; default the model's own N.")
    ] = None,
    metric: Metric = "fd/digits",
    mode: Annotated[
        str, typer.Option("--mode", help="exact, or reference: the paper's code, which misses either end of the grid.")
    ] = "exact",
    num_samples: NumSamples = 10_000,
    parallel: Parallel = 1,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Search the sampling times of a consistency model, one after the other.

    Example: cmray search quickstart/cd-1a2b3c --nfe 2,3
    """
    budgets = numbers(nfe, "--nfe", int) or []
    from pydantic import ValidationError

    from cmray.cli.progress import Progress
    from cmray.config.experiment import SearchConfig
    from cmray.core.errors import CmrayError, ConfigError
    from cmray.engine.results import evaluate as measure
    from cmray.engine.results import recorded_value
    from cmray.engine.searching import search_grid, search_times, searched_measurement

    storage = storage.expanduser().absolute()
    who = subject_of(run, storage, tracking_uri)
    if who.kind != "consistency":
        raise CmrayError(f"{run} is a {who.kind} model; sampling times are searched for consistency models")
    try:
        options = {"nfe": tuple(budgets), "num_sigmas": num_sigmas, "num_samples": num_samples, "mode": mode}
        config = SearchConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        given = f"--mode {mode}" if first["loc"] == ("mode",) else f"--nfe {nfe}"
        raise ConfigError(f"{given}: {first['msg'].removeprefix('Value error, ')}") from None
    for n in config.nfe:
        search_grid(who.run, config, n)  # says now if it has too few points
    with setting(who, metric, parallel, address, storage) as (reference, pool):
        progress, found = Progress(errors), []
        try:
            for n in config.nfe:
                title = f"Searching {n - 1} time{'s' if n > 2 else ''}"
                result = search_times(
                    who,
                    config,
                    n,
                    reference,
                    pool,
                    BLOCK,
                    lambda count, *_, title=title: progress.task(title, count, None),
                )
                final = searched_measurement(who, result, num_samples, BLOCK)
                measure([final], reference, pool)
                found.append((result, recorded_value(final, reference)))
        finally:
            progress.close()
        if as_json:
            print_json([{"reported": value, **s.model_dump(mode="json")} for s, value in found])
            return
        for s, value in found:
            times = ",".join(f"{t:.4g}" for t in s.times)
            say(
                f"{s.nfe} NFE: times {times}  {metric} {value:.3f} on fresh seeds ({s.value:.3f} while searching, "
                f"{len(s.points)} evaluations)"
            )
        say(note(metric, reference))
        times = ",".join(f"{t:.4g}" for t in found[-1][0].times)
        following = command("sample", run, "--times", times, "--out", "samples.png", storage=storage)
        say(f"next: {following}")
