"""`cmray evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from cmray.cli.console import errors, output, print_json, say
from cmray.cli.measuring import BLOCK, Metric, NumSamples, Parallel, note, setting, subject_of
from cmray.cli.options import (
    DEFAULT_STORAGE,
    Address,
    Json,
    RunName,
    Sampler,
    Storage,
    TrackingUri,
    numbers,
    sampler_named,
)


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
    who = subject_of(run, storage, tracking_uri)
    if levels:
        samplers = [make_sampler(who.run, len(levels), levels, named)]
    else:
        samplers = [make_sampler(who.run, n, None, named) for n in budgets or usual(who.run, (1, 2), (1, 35))]
    with setting(who, metric, parallel, address, storage) as (reference, pool):
        wanted = [Measurement(who, s, num_samples, SEED_BASE["report"], BLOCK) for s in samplers]
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
        say(note(metric, reference))
