"""`cmray evaluate` and `cmray search`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmray.cli.console import errors, output, print_json, say
from cmray.cli.options import (
    DEFAULT_STORAGE,
    Address,
    Json,
    RunName,
    Sampler,
    Storage,
    TrackingUri,
    command,
    numbers,
    sampler_named,
)

if TYPE_CHECKING:
    from cmray.engine.evaluator import Pool
    from cmray.engine.results import Reference, Subject

Metric = Annotated[str, typer.Option("--metric", help="fd/EXTRACTOR.")]
NumSamples = Annotated[int, typer.Option("--num-samples", min=2, help="Generated images per number.")]
Parallel = Annotated[int, typer.Option("--parallel", min=1, metavar="N", help="Ray actors; 1 works in this process.")]
Block = 256


def evaluate(
    run: RunName,
    metric: Metric = "fd/digits",
    nfe: Annotated[
        str | None,
        typer.Option(
            "--nfe",
            metavar="1,2",
            help="Network evaluations per sample, at levels spread over the grid.",
        ),
    ] = None,
    times: Annotated[str | None, typer.Option("--times", metavar="80,0.8", help="Noise levels, descending.")] = None,
    sampler_name: Sampler = None,
    num_samples: NumSamples = 10_000,
    parallel: Parallel = 1,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Measure a model's Fréchet distance at given numbers of network evaluations.

    Example: cmray evaluate quickstart/cd-1a2b3c --nfe 1,2 --num-samples 10000
    """
    budgets, levels = numbers(nfe, "--nfe", int), numbers(times, "--times", float)
    if budgets and levels and budgets != [len(levels)]:
        raise typer.BadParameter(f"--times gives {len(levels)} noise levels, but --nfe is {nfe}; leave one of them out")
    named = sampler_named(sampler_name, bool(budgets or levels))
    from cmray.cli.progress import Progress
    from cmray.core.rng import SEED_BASE
    from cmray.engine.model import make_sampler
    from cmray.engine.results import Measurement, recorded_value
    from cmray.engine.results import budgets as usual
    from cmray.engine.results import evaluate as measure

    storage = storage.expanduser().absolute()
    who = _subject(run, storage, tracking_uri)
    if levels:
        samplers = [make_sampler(who.run, len(levels), levels, named)]
    else:
        samplers = [make_sampler(who.run, n, None, named) for n in budgets or usual(who.run, (1, 2), (1, 35))]
    with _setting(who, metric, parallel, address, storage) as (reference, pool):
        wanted = [Measurement(who, s, num_samples, SEED_BASE["report"], Block) for s in samplers]
        progress = Progress(errors)
        try:
            measure(wanted, reference, pool, lambda done, total: progress.task(f"Evaluating {run}", done, total))
        finally:
            progress.close()
        values = [recorded_value(m, reference) for m in wanted]
        if as_json:
            print_json(
                [
                    {"value": v, **m.provenance(reference).model_dump(mode="json")}
                    for m, v in zip(wanted, values, strict=True)
                ]
            )
            return
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in (metric, "NFE", "sampler", "noise levels", "n", "weights"):
            table.add_column(column)
        for m, value in zip(wanted, values, strict=True):
            shown = ", ".join(f"{t:.3g}" for t in m.sampler.times[:4]) + (" ..." if len(m.sampler.times) > 4 else "")
            table.add_row(f"{value:.3f}", str(m.sampler.nfe), m.sampler.title, shown, f"{num_samples:,}", who.weights)
        output.print(table)
        say(_note(metric, reference))


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
    from cmray.engine.results import recorded_value, search_grid, search_times, searched_measurement

    storage = storage.expanduser().absolute()
    who = _subject(run, storage, tracking_uri)
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
    with _setting(who, metric, parallel, address, storage) as (reference, pool):
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
                    Block,
                    lambda count, *_, title=title: progress.task(title, count, None),
                )
                final = searched_measurement(who, result, num_samples, Block)
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
        say(_note(metric, reference))
        times = ",".join(f"{t:.4g}" for t in found[-1][0].times)
        following = command("sample", run, "--times", times, "--out", "samples.png", storage=storage)
        say(f"next: {following}")


def _subject(run: str, storage: Path, tracking_uri: str | None) -> Subject:
    from cmray.cli.places import find_run
    from cmray.engine.results import subject

    found = find_run(run, storage, tracking_uri)
    return subject(found.folder, found.checkpoint)


@contextmanager
def _setting(
    who: Subject, metric: str, parallel: int, address: str | None, storage: Path
) -> Iterator[tuple[Reference, Pool]]:
    """The reference of the data the model was trained on, and a place to work."""
    from cmray.cluster.connect import check_reachable, connected, local_capacity, ray_address
    from cmray.cluster.resources import check_pool
    from cmray.config.data_facts import facts_of
    from cmray.config.fields import check_metric, extractor_of
    from cmray.core.errors import ConfigError
    from cmray.engine.evaluator import InlinePool
    from cmray.engine.results import reference_for
    from cmray.engine.session import default_device, prepare_process

    try:
        extractor = extractor_of(check_metric(metric))
    except ValueError as error:
        raise ConfigError(f"--metric: {error}") from None
    inline = parallel == 1 and address is None
    where = ray_address(address)
    if not inline and where is None:
        check_pool(parallel, local_capacity())
    elif not inline and where is not None:
        check_reachable(where)
    reference = reference_for(facts_of(who.run.data, storage), extractor, storage)
    if inline:
        prepare_process(1)
        yield reference, InlinePool(default_device())
        return
    with connected(where) as capacity:
        from cmray.cluster.evaluate import EvaluatorPool

        check_pool(parallel, capacity)
        pool = EvaluatorPool(parallel, cpus=1, gpus=1.0 if capacity.gpus >= parallel else 0.0)
        try:
            yield reference, pool
        finally:
            pool.close()


def _note(metric: str, reference: Reference) -> str:
    return (
        f"{metric}: Fréchet distance to {reference.statistics.n:,} images of {reference.dataset} "
        f"({reference.sha256[:8]}), not FID"
    )
