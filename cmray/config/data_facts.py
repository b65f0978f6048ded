"""What a plan needs to know of a dataset, prepared or not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cmray.config.run import DataConfig
from cmray.core.errors import ConfigError, DataError, MissingDataError
from cmray.datasets import datasets
from cmray.datasets.location import Location
from cmray.datasets.manifest import Manifest, read_manifest
from cmray.datasets.shards import default_window
from cmray.datasets.whole import load_whole


@dataclass(frozen=True)
class DataFacts:
    """What a plan needs to know of a dataset before anything is written."""

    name: str
    split: str
    folder: Location  # where its shards are, or will be
    prepared: bool
    shape: tuple[int, int, int]
    num_classes: int
    count: int
    std: float
    digest: str

    @property
    def nbytes(self) -> int:
        """Raw uint8 bytes of all images."""
        c, h, w = self.shape
        return self.count * c * h * w


def facts_of(config: DataConfig, storage: Path) -> DataFacts:
    """What is known of the dataset that a run names. Raises DataError, MissingDataError when it can be prepared."""
    if config.name:
        return _named(config.name, storage)
    assert config.path is not None
    place = Location(config.path)
    if config.dataset is not None and not place.exists():
        raise MissingDataError(
            f"data folder {place} does not exist; `{prepare_command(config.dataset, str(place))}` makes it"
        )
    return _facts(read_manifest(place), place)


def prepare_command(dataset: str, folder: str) -> str:
    """The command that makes a data folder."""
    source = "" if datasets.get(dataset).downloads else "--source YOUR_FILES "
    return f"cmray data prepare {dataset} {source}--out {folder}"


def usual_facts(config: DataConfig) -> DataFacts | None:
    """What is known of a dataset that is not there; None when its folder could hold anything.

    Deviation and digest are not known: they are made up, and fit for estimates only.
    """
    usual = datasets.get(config.dataset).usual if config.dataset else None
    if usual is None:
        return None
    assert config.dataset is not None
    assert config.path is not None
    made_up = hashlib.sha256(config.path.encode()).hexdigest()
    return DataFacts(
        config.dataset, "train", Location(config.path), False, usual.shape, usual.classes, usual.count, 0.5, made_up
    )


def _facts(manifest: Manifest, folder: Location) -> DataFacts:
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
    folder = Location(storage / "datasets" / name)
    config = datasets.get(name)()
    if folder.exists():
        return _facts(read_manifest(folder), folder)
    if not config.embedded:
        raise DataError(
            f"{name} does not come with cmray: `cmray data prepare {name} --source PATH --out DIR`, then data.path"
        )
    dataset = load_whole(config)
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


#: raw pixels of the largest dataset that `data.feed: auto` keeps in memory. A constant, as the order of the images
#: depends on the feed: a run must not turn out differently on another machine.
RESIDENT_LIMIT = 16 * 2**30


def resolved_feed(config: DataConfig, facts: DataFacts) -> DataConfig:
    """`config` with digest, feed and shuffle_buffer filled in. Raises ConfigError."""
    feed = config.feed
    if feed == "auto":
        large = facts.nbytes > RESIDENT_LIMIT
        if config.shuffle_buffer is not None and not large:
            raise ConfigError(
                f"data.shuffle_buffer is for streaming, but {facts.name} has {facts.nbytes / 2**20:,.0f} MiB of pixels "
                f"and data.feed is auto, which keeps it in memory; set data.feed to stream"
            )
        feed = "stream" if large else "resident"
    window = (config.shuffle_buffer or default_window(facts.shape, facts.count)) if feed == "stream" else None
    return config.model_copy(update={"digest": facts.digest, "feed": feed, "shuffle_buffer": window})
