"""The manifest of a prepared dataset: what is in its shards, where it came from, and the hashes that vouch for both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from cmray.core.errors import DataError
from cmray.datasets.location import Location, why

MANIFEST = "manifest.json"
#: written while shards are being made, removed when the manifest is there
PREPARING = "preparing.json"
FORMAT_VERSION = 2


class Shard(BaseModel):
    model_config = ConfigDict(frozen=True)
    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Block:
    """Rows that are read together: one row group of a shard."""

    shard: int
    group: int
    first: int  # index of its first row in the dataset
    rows: int


class Manifest(BaseModel):
    """What a prepared dataset is. `digest` is of the content in order, whatever the shards; theirs are of the files.

    `mean` and `std` are over all values in [-1, 1], `channel_mean` and `channel_std` over those of each channel.
    """

    model_config = ConfigDict(frozen=True)
    format_version: int
    name: str
    split: str
    source: str
    count: int
    skipped: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    encoding: str
    crop: str
    background: str
    group_rows: int
    mean: float
    std: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    digest: str
    shards: tuple[Shard, ...]
    cmray_version: str

    @property
    def nbytes(self) -> int:
        """Raw uint8 bytes of all images."""
        c, h, w = self.shape
        return self.count * c * h * w

    @property
    def file_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def blocks(self) -> list[Block]:
        """All blocks in the order of the dataset."""
        out, first = [], 0
        for i, shard in enumerate(self.shards):
            for group, start in enumerate(range(0, shard.rows, self.group_rows)):
                rows = min(self.group_rows, shard.rows - start)
                out.append(Block(i, group, first, rows))
                first += rows
        return out


class ContentDigest:
    """SHA-256 of images and labels in order with shape and classes: the same however they are stored in shards.

    Args:
        shape: (C, H, W).
        encoding: raw, or how images are encoded; then it is the encoded bytes that count.
    """

    def __init__(self, shape: Sequence[int], classes: Sequence[str], encoding: str = "raw"):
        head = [list(shape), list(classes), *([encoding] if encoding != "raw" else [])]
        self._hash = hashlib.sha256(json.dumps(head).encode())
        self._labels: list[np.ndarray] = []
        self._count = 0

    def update(self, images: np.ndarray | Sequence[bytes], labels: np.ndarray | None) -> None:
        """Adds rows: uint8 [n, C, H, W], or encoded images."""
        if isinstance(images, np.ndarray):
            self._hash.update(np.ascontiguousarray(images).data)
        else:
            for data in images:
                self._hash.update(len(data).to_bytes(8, "little") + data)
        self._count += len(images)
        if labels is not None:
            self._labels.append(np.asarray(labels, dtype="<i8"))

    def hexdigest(self) -> str:
        final = self._hash.copy()
        final.update(f"count {self._count}".encode())
        for labels in self._labels:
            final.update(labels.tobytes())
        return final.hexdigest()


class Levels:
    """How often each of the 256 levels occurs in each channel: exact means and deviations, in any order.

    Args:
        counts: int64 [C, 256], or the number of channels to start with.
    """

    def __init__(self, counts: np.ndarray | int):
        self.counts = np.zeros((counts, 256), np.int64) if isinstance(counts, int) else np.asarray(counts, np.int64)

    def update(self, images: np.ndarray) -> None:
        """Adds uint8 [n, C, H, W]."""
        step = max(1, 2**24 // max(1, images[0].size)) if len(images) else 1
        for start in range(0, len(images), step):  # bincount makes int64 copies
            for c in range(images.shape[1]):
                self.counts[c] += np.bincount(images[start : start + step, c].reshape(-1), minlength=256)

    def mean_std(self) -> tuple[float, float]:
        """Over all channels, of values in [-1, 1]."""
        return _mean_std(self.counts.sum(axis=0))

    def by_channel(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        means, stds = zip(*(_mean_std(row) for row in self.counts), strict=True)
        return means, stds


def _mean_std(counts: np.ndarray) -> tuple[float, float]:
    values = np.arange(256) / 127.5 - 1
    mean = float((counts * values).sum() / counts.sum())
    return mean, float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))


def read_manifest(folder: str | Path | Location) -> Manifest:
    """The manifest of a prepared dataset. Raises DataError when there is none or it cannot be understood."""
    place = Location(folder)
    path = f"{place}/{MANIFEST}"
    try:
        if place.size(MANIFEST) is None:
            raise DataError(_no_manifest(place))
        raw: dict[str, Any] = json.loads(place.read(MANIFEST))
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(
                f"{path} has format_version {version}, of a newer cmray; this one reads up to {FORMAT_VERSION}: "
                f"update cmray, or prepare the dataset again"
            )
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format_version {version!r}; this cmray reads version {FORMAT_VERSION}: remove {place} "
                f"and prepare the dataset again"
            )
        return Manifest.model_validate(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {why(error)}") from None


def _no_manifest(place: Location) -> str:
    if not place.exists():
        return f"data folder {place} does not exist; `cmray data prepare NAME --out {place}` makes one"
    if PREPARING in place.names():
        return (
            f"{place} has no {MANIFEST}: its preparation was cut off, or is still going on; "
            f"the same `cmray data prepare` command goes on with it"
        )
    if not place.names():
        return f"data folder {place} is empty, so has no {MANIFEST}; `cmray data prepare NAME --out {place}` fills it"
    return f"{place} has no {MANIFEST}: it is not a prepared dataset"


def verify_shards(folder: str | Path | Location, manifest: Manifest, *, rehash: bool) -> None:
    """Checks that every shard is there in its recorded size and, with `rehash`, content. Raises DataError."""
    place = Location(folder)
    for shard in manifest.shards:
        try:
            size = place.size(shard.file)
            if size is None:
                raise DataError(f"{place} lacks {shard.file}, which its manifest lists")
            if size != shard.bytes or (rehash and place.sha256(shard.file) != shard.sha256):
                raise DataError(
                    f"{place}/{shard.file} changed after preparation ({size} bytes, the manifest says {shard.bytes}"
                    f"{'' if size != shard.bytes else ', but another SHA-256'}); prepare the dataset again"
                )
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{place}/{shard.file} cannot be read: {why(error)}") from None
