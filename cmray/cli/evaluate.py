"""`cmray evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmray.cli.console import errors, output, print_json, say
from cmray.cli.measuring import Parallel, against_of, subject_of, working
from cmray.cli.options import (
    DEFAULT_STORAGE,
    Address,
    Json,
    Sampler,
    Storage,
    TrackingUri,
    Weights,
    mlflow_command,
    numbers,
    on_command_line,
    sampler_named,
)
from cmray.core.protocol import BLOCK, REFERENCE_BLOCK

if TYPE_CHECKING:
    from cmray.config.metric import MetricSpec
    from cmray.engine.references import Against, Reference
    from cmray.engine.results import Subject
    from cmray.tracking.records import Evaluation

#: generated images per number unless --num-samples says
NUM_SAMPLES = 10_000


def evaluate(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="EXPERIMENT/TRIAL, a trial's name, or its beginning, an MLflow run id, or a checkpoint folder.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="MEASURE/EXTRACTOR",
            help="Repeatable, or several with commas; options as YAML: '{name: kid/digits, subset_size: 100}'. "
            "Default fd/digits.",
        ),
    ] = None,
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
    weights: Weights = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--num-samples",
            min=2,
            help=f"Images per number; default {NUM_SAMPLES:,}, or all that --images has, of which fewer are drawn by a "
            "fixed seed.",
        ),
    ] = None,
    seed_blocks: Annotated[
        int,
        typer.Option(
            "--seed-blocks", min=1, max=100, help="Measure so many disjoint blocks of seeds: mean, best, spread."
        ),
    ] = 1,
    images: Annotated[
        str | None,
        typer.Option("--images", metavar="FOLDER_OR_NPZ", help="Measure these images instead of a model's."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="FILE.npz", help="Published statistics (mu, sigma) to measure against."),
    ] = None,
    reference_data: Annotated[
        str | None,
        typer.Option(
            "--reference-data",
            metavar="NAME_OR_FOLDER",
            help="A dataset, a folder or an .npz of images to measure against; default the data a model learned.",
        ),
    ] = None,
    parallel: Parallel = 1,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Measure a model's samples, or images that are there already, by any metrics in one pass.

    Example: cmray evaluate quickstart/cd-1a2b3c --nfe 1,2 --metric fd/digits,precision/digits
    """
    budgets, levels = numbers(nfe, "--nfe", int), numbers(times, "--times", float)
    if budgets and levels and budgets != [len(levels)]:
        raise typer.BadParameter(f"--times gives {len(levels)} noise levels, but --nfe is {nfe}; leave one of them out")
    named = sampler_named(sampler_name, bool(budgets or levels))
    if (run is None) == (images is None):
        raise typer.BadParameter("name a RUN, or give --images FOLDER_OR_NPZ" + (", not both" if run else ""))
    about_models = {"--nfe": nfe, "--times": times, "--sampler": sampler_name, "--weights": weights}
    for option, given in {**about_models, "--seed-blocks": seed_blocks if seed_blocks > 1 else None}.items():
        if images is not None and given is not None:
            raise typer.BadParameter(f"{option} is about a model's samples, but --images are there already")
    if images is not None and on_command_line(context, "tracking_uri"):
        raise typer.BadParameter("--tracking-uri is for a model's run in MLflow, which --images have none of")
    from cmray.cli.progress import Progress
    from cmray.cluster.mirror_models import ModelMirror
    from cmray.config.metric import parse_metrics
    from cmray.engine.remote_sync import share

    metrics = parse_metrics(metric or ["fd/digits"])
    storage = storage.expanduser().absolute()
    progress, seen = Progress(errors), None
    if images is not None:
        against = against_of(reference, reference_data, None, storage)
        found, sides = _images(images, num_samples, metrics, against, storage, parallel, address, progress)
    else:
        assert run is not None
        who = subject_of(run, storage, tracking_uri, weights)
        samplers = _samplers(who, budgets, levels, named)
        against = against_of(reference, reference_data, who, storage)
        n = num_samples or NUM_SAMPLES
        mirror = ModelMirror([who.folder], storage, tracking_uri, progress.warn)
        found, sides = _model(
            who, run, samplers, n, seed_blocks, metrics, against, storage, parallel, address, progress
        )
        share([who.folder])
        seen = mirror.send()
    if as_json:
        print_json([_as_json(e) for e in found])
    else:
        _show(found, sides)
        if seen:
            say(f"MLflow: {mlflow_command(tracking_uri, storage, seen)}")


def _samplers(who: Subject, budgets: list | None, levels: list | None, named: dict[str, Any] | None) -> list[Any]:
    from cmray.engine.model import make_sampler
    from cmray.engine.results import budgets as usual
    from cmray.objectives.base import TEACHER_NFE

    if levels:
        return [make_sampler(who.run, len(levels), levels, named)]
    return [make_sampler(who.run, n, None, named) for n in budgets or usual(who.run, (1, 2), (1, TEACHER_NFE))]


def _model(
    who: Subject,
    run: str,
    samplers: list[Any],
    n: int,
    seed_blocks: int,
    metrics: tuple[MetricSpec, ...],
    against: Against,
    storage: Path,
    parallel: int,
    address: str | None,
    progress: Any,
) -> tuple[list[Evaluation], list[Reference]]:
    from cmray.config.checkpoint_facts import read_checkpoint_facts
    from cmray.core.rng import SEED_BASE
    from cmray.engine.references import check_metrics, references_for
    from cmray.engine.results import Measurement, recorded
    from cmray.engine.results import evaluate as measure

    shape = read_checkpoint_facts(who.checkpoint).shape
    check_metrics(metrics, against, shape, n, BLOCK)
    with working(parallel, address, on_gpus=who.run.resources.gpus_per_worker > 0) as pool:
        try:
            references = references_for(metrics, against, shape, storage, pool, progress.task)
            wanted = [
                Measurement(who, s, n, SEED_BASE["report"], BLOCK, metric=m, seed_blocks=seed_blocks)
                for s in samplers
                for m in metrics
            ]
            measure(wanted, references, pool, lambda done, total: progress.task(f"Evaluating {run}", done, total))
        finally:
            progress.close()
    records = [recorded(m, references) for m in wanted]
    return [r for r in records if r is not None], references


def _images(
    text: str,
    count: int | None,
    metrics: tuple[MetricSpec, ...],
    against: Against,
    storage: Path,
    parallel: int,
    address: str | None,
    progress: Any,
) -> tuple[list[Evaluation], list[Reference]]:
    from cmray.core.errors import DataError
    from cmray.engine.images import drawn, find_images
    from cmray.engine.references import check_metrics, references_for
    from cmray.engine.results import evaluate_images

    images = find_images(text, storage, "--images")
    if count is not None and count > images.count:
        raise DataError(f"--num-samples is {count:,}, but {text} holds {images.count:,} images")
    images = drawn(images, count or images.count)
    check_metrics(metrics, against, images.shape, images.count, REFERENCE_BLOCK)
    with working(parallel, address) as pool:
        try:
            references = references_for(metrics, against, images.shape, storage, pool, progress.task)
            return evaluate_images(images, metrics, references, storage, pool, progress.task), references
        finally:
            progress.close()


def _as_json(e: Evaluation) -> dict[str, Any]:
    plain = e.model_dump(mode="json", include={"value", "low", "high", "error", "note", "better", "blocks"})
    return {**plain, "best": e.best, "spread": e.spread, **e.provenance.model_dump(mode="json")}


def _show(found: list[Evaluation], references: list[Reference]) -> None:
    from rich.table import Table

    from cmray.report.columns import shown_metric
    from cmray.report.notes import evaluation_notes
    from cmray.report.tables import format_interval

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value [95% interval]", no_wrap=not any(e.blocks for e in found))
    sampled = any(e.provenance.nfe for e in found)
    for column in ("NFE", "sampler", "noise levels") if sampled else ():
        table.add_column(column)
    for e in found:
        p = e.provenance
        levels = ", ".join(f"{t:.3g}" for t in p.times[:4]) + (" ..." if len(p.times) > 4 else "")
        table.add_row(shown_metric(p), format_interval(e), *([str(p.nfe), p.sampler, levels] if sampled else []))
    output.print(table)
    p = found[0].provenance
    blocks = "" if p.seed_blocks == 1 else f"{p.seed_blocks} blocks of "
    say(f"n = {blocks}{p.n:,}, {f'weights {p.weights}' if sampled else p.weights}.")
    for line in evaluation_notes(found, {r.extractor: r.note for r in references}):
        say(line)
