"""The manifest of a prepared dataset: what is in its shards, where it came from, and the hashes that vouch for both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from cmray.core.errors import DataError
from cmray.datasets.location import Location, why

MANIFEST = "manifest.json"
#: written while shards are being made, removed when the manifest is there
PREPARING = "preparing.json"
FORMAT_VERSION = 2
#: raw bytes of the images that are read together
BLOCK_BYTES = 3 * 2**20
#: values of one image, RGB of as many pixels as an image file may have
MAX_VALUES = 3 * 2**27


def _gray_or_rgb(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError("images have 1 channel or 3")
    return channels


Channels = Annotated[int, AfterValidator(_gray_or_rgb)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Deviation = Annotated[FiniteFloat, Field(ge=0)]


def group_rows(shape: Sequence[int]) -> int:
    """Rows of a block: about 3 MiB of raw images, between 16 and 1,024 of them."""
    return int(np.clip(2 ** int(np.log2(max(1, BLOCK_BYTES / np.prod(shape)))), 16, 1024))


class Shard(BaseModel):
    """One Parquet file of a prepared dataset."""

    model_config = ConfigDict(frozen=True)
    file: str = Field(pattern=r"^shard-[0-9]{5,}\.parquet$", description="name in the folder")
    rows: PositiveInt = Field(description="images in it")
    bytes: PositiveInt = Field(description="size of the file")
    sha256: Sha256 = Field(description="of the file")


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

    Raises:
        ValidationError: a field is out of its range, or contradicts another one.
    """

    model_config = ConfigDict(frozen=True)
    format_version: int = Field(description="of the folder's layout; this cmray reads 2")
    name: str = Field(pattern=r"^[^/]+$", description="of the dataset")
    split: str = Field(description="part of the source")
    source: str = Field(description="where it was read from")
    count: PositiveInt = Field(description="images")
    skipped: NonNegativeInt = Field(description="images that could not be used and were left out")
    shape: tuple[Channels, PositiveInt, PositiveInt] = Field(description="channels, height, width in pixels")
    classes: tuple[str, ...] = Field(description="names by label; empty without labels")
    encoding: Literal["raw", "png", "jpeg"] = Field(description="of the pixels: raw, png or jpeg")
    crop: str = Field(description="rule by which images became square")
    background: str = Field(description="colour under transparent pixels")
    group_rows: PositiveInt = Field(description="images that are read together")
    mean: FiniteFloat = Field(description="over all values, in [-1, 1]")
    std: Deviation = Field(description="over all values, in [-1, 1]")
    channel_mean: tuple[FiniteFloat, ...] = Field(description="the same of each channel")
    channel_std: tuple[Deviation, ...] = Field(description="the same of each channel")
    digest: Sha256 = Field(description="SHA-256 of the content in order, whatever the shards")
    shards: tuple[Shard, ...] = Field(min_length=1, description="the Parquet files, in order")
    cmray_version: str = Field(description="that prepared it")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        channels, height, width = self.shape
        if channels * height * width > MAX_VALUES:
            raise ValueError(f"shape: {channels}x{height}x{width} is more than {MAX_VALUES:,} values an image")
        if self.group_rows != group_rows(self.shape):
            found = f"{self.group_rows}, but blocks of this shape have {group_rows(self.shape)}"
            raise ValueError(f"group_rows: it is {found}")
        rows = sum(shard.rows for shard in self.shards)
        if rows != self.count:
            raise ValueError(f"count: it is {self.count:,}, but the shards have {rows:,} rows")
        for i, shard in enumerate(self.shards):
            if shard.rows > shard.bytes * self.group_rows:  # a block takes at least one byte
                raise ValueError(f"shards.{i}.rows: {shard.rows:,} do not fit into {shard.bytes:,} bytes")
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ValueError("shards: the same file is listed twice")
        for field in ("channel_mean", "channel_std"):
            if len(getattr(self, field)) != channels:
                raise ValueError(f"{field}: it has {len(getattr(self, field))} numbers for {channels} channels")
        return self

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
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {_wrong_field(error)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {why(error)}") from None


def _wrong_field(error: ValidationError) -> str:
    """The first field that is wrong, what it must be and what it is."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")  # those of the model name their field themselves
    where = ".".join(map(str, first["loc"]))
    scalar = isinstance(first["input"], str | int | float)
    return (f"{where}: " if where else "") + message + (f", not {_short(first['input'])}" if scalar else "")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


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
