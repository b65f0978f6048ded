"""What a plan needs to know of a dataset, prepared or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmray.config.run import DataConfig
from cmray.datasets import datasets
from cmray.datasets.shards import Manifest, read_manifest


@dataclass(frozen=True)
class DataFacts:
    """What a plan needs to know of a dataset before anything is written."""

    name: str
    split: str
    folder: Path  # where its shards are, or will be
    prepared: bool
    shape: tuple[int, int, int]
    num_classes: int
    count: int
    std: float
    digest: str


def facts_of(config: DataConfig, storage: Path) -> DataFacts:
    """What is known of the dataset that a run names. Raises DataError."""
    if config.name:
        return _named(config.name, storage)
    assert config.path is not None
    return _prepared(config.path)


def _prepared(folder: Path) -> DataFacts:
    return _facts(read_manifest(folder), folder)


def _facts(manifest: Manifest, folder: Path) -> DataFacts:
    return DataFacts(
        manifest.name,
        manifest.split,
        folder,
        True,
        manifest.shape,
        len(manifest.classes),
        manifest.count,
        manifest.std,
        manifest.digest,
    )


def _named(name: str, storage: Path) -> DataFacts:
    folder = storage / "datasets" / name
    config = datasets.get(name)()
    if folder.is_dir():
        return _facts(read_manifest(folder), folder)
    dataset = config.load()
    return DataFacts(
        dataset.name,
        dataset.split,
        folder,
        False,
        dataset.shape,
        len(dataset.classes),
        len(dataset),
        dataset.mean_std()[1],
        dataset.digest(),
    )
