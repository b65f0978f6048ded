"""What commands that run models share: options, the model, the reference, threads, and a place to work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmray.cli.console import errors

if TYPE_CHECKING:
    from cmray.config.checkpoint_facts import CheckpointFacts
    from cmray.engine.evaluator import Pool
    from cmray.engine.references import Against
    from cmray.engine.results import Reference, Subject

#: bytes of weights of a small network
ONE_THREAD_BELOW = 8 << 20

Metric = Annotated[
    str,
    typer.Option("--metric", help="fd/EXTRACTOR; options as YAML: '{name: fd/trained, extractor: {path: FILE}}'."),
]
NumSamples = Annotated[int, typer.Option("--num-samples", min=2, help="Generated images per number.")]
Parallel = Annotated[
    int,
    typer.Option(
        "--parallel",
        min=1,
        metavar="N",
        help="Chunks at once: threads of this process, or Ray actors where there are GPUs or an --address.",
    ),
]
Actors = Annotated[int, typer.Option("--parallel", min=1, metavar="N", help="Ray actors; 1 works in this process.")]


def set_threads(models: Sequence[tuple[Path, CheckpointFacts, str | None]]) -> None:
    """One CPU thread where all networks are small, else all: on a busy machine waking others took 50 times as long.

    Args:
        models: a checkpoint, its manifest, and the weights that are used, each.
    """
    import torch

    from cmray.engine.model import weights_file
    from cmray.engine.remote import fetch_checkpoint
    from cmray.engine.session import prepare_process

    sizes = []
    for checkpoint, facts, weights in models:
        fetch_checkpoint(checkpoint)  # where the storage is in an object store
        sizes.append((checkpoint / weights_file(facts, weights, checkpoint)).stat().st_size)
    prepare_process(1 if max(sizes) < ONE_THREAD_BELOW else torch.get_num_threads())


def subject_of(run: str, storage: Path, tracking_uri: str | None, weights: str | None = None) -> Subject:
    from cmray.engine.results import subject
    from cmray.tracking.places import find_run

    found = find_run(run, storage, tracking_uri)
    return subject(found.folder, found.checkpoint, weights)


def against_of(reference: Path | None, data: str | None, who: Subject | None, storage: Path) -> Against:
    """What is measured against: --reference FILE, --reference-data NAME_OR_FOLDER, else the data a model learned."""
    from cmray.config.data_facts import facts_of
    from cmray.core.errors import ConfigError, DataError
    from cmray.engine.images import find_images, image_set_of
    from cmray.engine.references import Against
    from cmray.metrics.reference import read_published

    if reference is not None and data is not None:
        raise ConfigError(f"--reference {reference} and --reference-data {data}: leave one of them out")
    if reference is not None:
        try:
            return Against(published=read_published(reference.expanduser()))
        except DataError as error:
            raise DataError(f"--reference: {error}") from None
    if data is not None:
        return Against(find_images(data, storage, "--reference-data"))
    return Against(image_set_of(facts_of(who.run.data, storage))) if who else Against()


@contextmanager
def working(parallel: int, address: str | None, threads: bool = True, on_gpus: bool = False) -> Iterator[Pool]:
    """A place to work: this process, or actors on a Ray that is started here or joined.

    Args:
        threads: whether threads of this process do instead of actors, where it has no GPU.
        on_gpus: whether a cluster that grows shall bring GPUs for it.
    """
    from cmray.cli.progress import Progress
    from cmray.cluster.connect import check_reachable, connected, local_capacity, ray_address
    from cmray.cluster.resources import check_pool
    from cmray.engine.evaluator import InlinePool
    from cmray.engine.session import default_device, prepare_process

    where = ray_address(address)
    if parallel == 1 and address is None:
        prepare_process(1)
        yield InlinePool(default_device())
        return
    if where is None:
        capacity = local_capacity()
        check_pool(parallel, capacity)
        if threads and not capacity.gpus:
            from cmray.engine.threads import ThreadPool

            prepare_process(1)
            with closing(ThreadPool(parallel)) as pool:
                yield pool
            return
    else:
        check_reachable(where)
    with connected(where) as capacity:
        from cmray.cluster.autoscale import room_for_pool
        from cmray.cluster.evaluate import EvaluatorPool

        waiting = Progress(errors)
        try:
            capacity = room_for_pool(capacity, parallel, on_gpus, waiting)
        finally:
            waiting.close()
        check_pool(parallel, capacity)
        pool = EvaluatorPool(parallel, cpus=1, gpus=1.0 if capacity.gpus >= parallel else 0.0)
        try:
            yield pool
        finally:
            pool.close()


@contextmanager
def setting(
    who: Subject, metric: str, parallel: int, address: str | None, storage: Path
) -> Iterator[tuple[Reference, Pool]]:
    """The reference of the data the model was trained on, and a place to work."""
    from cmray.config.data_facts import facts_of
    from cmray.config.metric import parse_metrics
    from cmray.core.errors import ConfigError
    from cmray.engine.results import reference_for

    specs = parse_metrics([metric])
    if len(specs) != 1 or specs[0].measure.name != "fd":
        raise ConfigError(f"--metric {metric}: searches minimise one Fréchet distance; give fd/EXTRACTOR")
    extractor = specs[0].extractor.model_dump(mode="json")
    on_gpus = who.run.resources.gpus_per_worker > 0
    with working(parallel, address, threads=False, on_gpus=on_gpus) as pool:  # candidates are many and small
        yield reference_for(facts_of(who.run.data, storage), extractor, storage, pool), pool


def note(metric: str, reference: Reference) -> str:
    return (
        f"{metric}: Fréchet distance to {reference.statistics.n:,} images of {reference.dataset} "
        f"({reference.sha256[:8]}), not FID"
    )
