"""`cmray features train`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmray.cli.console import errors, print_json, say
from cmray.cli.options import DEFAULT_STORAGE, Json, Storage

if TYPE_CHECKING:
    from cmray.datasets.base import ImageDataset

#: registered names, written out because importing the extractors would import torch, which help must not wait for
EXTRACTORS = (
    "digits, inception-clean, inception-legacy-pytorch, inception-legacy-tensorflow, clip, dinov2-b, dinov2-l, "
    "torchscript, trained"
)

app = typer.Typer(
    help=f"Features that images are measured in. There are: {EXTRACTORS}; fd/NAME is the distance in them.",
    no_args_is_help=True,
)

#: seconds between lines where there is no terminal
LINE_EVERY = 15.0


@app.callback()
def _group() -> None:
    """With a callback, one command is still a group of commands."""


@app.command()
def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A prepared dataset with labels (folder, s3://, ...), or digits.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where to write it (.safetensors).", show_default=False)
    ],
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the images.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split, the weights and the order.")] = 0,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Train a small classifier of your images, whose features the extractor `trained` measures with.

    For images that are no photographs: of 8 to 64 pixels a side, with 1 or 3 channels. A fifth of the images is held
    out to count how many are classified right. The same data and seed give the same file.

    Example: cmray features train digits --out digits-features.safetensors

    Example: cmray features train data/mnist --out mnist.safetensors --epochs 5
    """
    import torch

    from cmray.engine.versions import versions
    from cmray.metrics.trained import Recipe, check_trainable, save_features, train_features
    from cmray.metrics.weights_files import content_of

    _check_out(out)
    dataset, digest = _dataset(data, storage.expanduser().absolute())
    labels = None if dataset.labels is None else torch.from_numpy(dataset.labels.copy())
    check_trainable(dataset.shape, labels, dataset.classes, data)
    assert labels is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _bar(data, epochs) as progress:
        network, record = train_features(
            torch.from_numpy(dataset.images), labels, len(dataset.classes), Recipe(epochs, seed), device, progress
        )
    told = {
        "name": dataset.name,
        "split": dataset.split,
        "digest": digest,
        "count": len(dataset),
        "shape": list(dataset.shape),
        "classes": list(dataset.classes),
    }
    record = {**record, "dataset": told, "versions": versions(), "device": device.type}
    save_features(network, record, out)
    if as_json:
        print_json({"file": str(out), "sha256": content_of(out), **record})
        return
    say(
        f"{record['n_correct']:,} of {record['n_test']:,} held-out images classified right "
        f"({record['accuracy']:.1%}); written: {out}"
    )
    chance = 1 / len(dataset.classes)
    if record["accuracy"] < (1 + chance) / 2:  # closer to guessing than to all
        errors.print("[yellow]warning:[/] that is a weak classifier, and its features say little; try more --epochs")
    say(f"next: cmray evaluate RUN --metric '{{name: fd/trained, extractor: {{path: {out}}}}}'")


def _check_out(out: Path) -> None:
    """Raises DataError when the file could not be written, or is something else, before anything is trained."""
    from cmray.core.errors import DataError
    from cmray.metrics.trained import load_features

    folder = out.absolute().parent
    if out.is_dir() or not folder.is_dir():
        raise DataError(f"--out {out}: name a file in a folder that exists")
    if not os.access(folder, os.W_OK):
        raise DataError(f"--out {out}: the folder {folder} cannot be written")
    if out.exists():
        try:
            load_features(out)
        except DataError as error:
            raise DataError(f"--out {out} exists and would be replaced, but {error}") from None


def _dataset(data: str, storage: Path) -> tuple[ImageDataset, str]:
    """The images that DATA names, in memory, and the digest of their content. Raises DataError and ConfigError."""
    import warnings

    from cmray.config.data_facts import RESIDENT_LIMIT, facts_of
    from cmray.config.run import DataConfig
    from cmray.core.errors import DataError
    from cmray.datasets import datasets
    from cmray.datasets.location import Location
    from cmray.datasets.shards import read_shards
    from cmray.datasets.whole import load_whole

    named = data in datasets.names() and not Location(data).exists()
    facts = facts_of(DataConfig(name=data) if named else DataConfig(path=data), storage)
    if facts.nbytes > RESIDENT_LIMIT:
        raise DataError(
            f"{data} has {facts.nbytes / 2**30:,.0f} GiB of pixels; features are trained in memory, on up to "
            f"{RESIDENT_LIMIT // 2**30} GiB"
        )
    with warnings.catch_warnings(action="ignore"):  # arrays of Arrow may not be written, and nobody does
        dataset = read_shards(facts.folder) if facts.prepared else load_whole(datasets.get(data)())
    return dataset, facts.digest


@contextmanager
def _bar(data: str, epochs: int) -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar on a terminal; elsewhere a line every quarter of a minute."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not errors.is_terminal:
        yield _lines(epochs)
        return
    columns = (
        TextColumn(f"training on {data}", markup=False),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}, loss {task.fields[loss]:.3f},"),
        TimeElapsedColumn(),
        TextColumn("so far,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("", total=None, epoch=f"1 of {epochs}", loss=0.0)

        def update(step: int, steps: int, loss: float) -> None:
            epoch = f"{-(-step * epochs // steps)} of {epochs}"
            bar.update(task, total=steps, completed=step, epoch=epoch, loss=loss)

        yield update


def _lines(epochs: int) -> Callable[[int, int, float], None]:
    import time

    from cmray.cli.console import duration

    began = told = time.monotonic()

    def line(step: int, steps: int, loss: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= LINE_EVERY:
            told = now
            left = (now - began) / step * (steps - step)
            errors.print(
                f"epoch {-(-step * epochs // steps)} of {epochs}, loss {loss:.3f}, {duration(now - began)} so far, "
                f"{duration(left)} left"
            )

    return line
