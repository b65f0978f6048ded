"""Datasets that fit into memory: loaded without shards, or written as shards in one go."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmray.core.errors import DataError
from cmray.core.files import beside
from cmray.datasets.base import DatasetConfig, ImageDataset
from cmray.datasets.images import ImageRule, resolve
from cmray.datasets.manifest import Manifest
from cmray.datasets.prepare import Preparation, make_piece
from cmray.datasets.source import ArraySource


def write_shards(dataset: ImageDataset, out: Path, num_shards: int) -> Manifest:
    """Writes a dataset that is in memory, under `out`, whole or not at all; two processes may try at once.

    Raises:
        DataError: `out` exists and is not an empty folder or cannot be written; more shards than images.
    """
    if (dataset.labels is None) == bool(dataset.classes):
        raise DataError(f"{dataset.name} needs both labels and class names, or neither")
    source = ArraySource(dataset.name, dataset.split, dataset.source, dataset.classes, dataset.images, dataset.labels)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty; name another folder, or remove it to prepare again")
    tmp = out
    try:
        with beside(out) as tmp:
            return Preparation(source, ImageRule.model_validate({"encoding": "raw"}), tmp, num_shards).run()
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from None
    except DataError as error:
        raise DataError(str(error).replace(str(tmp), str(out))) from None


def load_whole(config: DatasetConfig) -> ImageDataset:
    """A dataset in memory without shards, in its usual form. Raises DataError."""
    source = config.open()
    resolved = resolve(ImageRule.model_validate({**config.rule_for(source), "encoding": "raw"}), source)
    piece = make_piece(source, resolved, (0, len(source)))
    if piece.bad:
        raise DataError(f"{piece.bad[0].where}: {piece.bad[0].reason}")
    assert isinstance(piece.images, np.ndarray)
    return ImageDataset(source.name, source.split, source.origin, piece.images, piece.labels, source.classes)
