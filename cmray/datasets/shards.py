"""Parquet shards of fixed-shape uint8 tensors with a manifest that vouches for them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from cmray import __version__
from cmray.core.errors import DataError
from cmray.core.files import sha256_of
from cmray.datasets.base import ImageDataset

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


class Shard(BaseModel):
    model_config = ConfigDict(frozen=True)
    file: str
    rows: int
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a prepared dataset is. `digest` is of the content; the shards' hashes are of the files."""

    model_config = ConfigDict(frozen=True)
    format_version: int
    name: str
    split: str
    source: str
    count: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: float
    std: float
    digest: str
    shards: tuple[Shard, ...]
    cmray_version: str

    @property
    def nbytes(self) -> int:
        """Raw uint8 bytes of all images."""
        c, h, w = self.shape
        return self.count * c * h * w


def write_shards(dataset: ImageDataset, out: Path, num_shards: int) -> Manifest:
    """Writes shards and manifest under `out`, whole or not at all.

    Each row has `index` (int64, position in the dataset), `image` (fixed-shape uint8 tensor [C,H,W]) and, with
    classes, `label` (int64).

    Raises:
        DataError: `out` exists and is not an empty folder or cannot be written; more shards than images.
    """
    if not 1 <= num_shards <= len(dataset):
        raise DataError(
            f"--shards is {num_shards}; {dataset.name} has {len(dataset)} images, so 1 to {len(dataset)} work"
        )
    if (dataset.labels is None) == bool(dataset.classes):
        raise DataError(f"{dataset.name} needs both labels and class names, or neither")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty; name another folder, or remove it to prepare again")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}") from None
    try:
        shards = []
        for i, rows in enumerate(np.array_split(np.arange(len(dataset)), num_shards)):
            file = f"shard-{i:05d}-of-{num_shards:05d}.parquet"
            pq.write_table(_table(dataset, rows), tmp / file, compression="zstd")
            size = (tmp / file).stat().st_size
            shards.append(Shard(file=file, rows=len(rows), bytes=size, sha256=sha256_of(tmp / file)))
        mean, std = dataset.mean_std()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=dataset.name,
            split=dataset.split,
            source=dataset.source,
            count=len(dataset),
            shape=dataset.shape,
            classes=dataset.classes,
            mean=mean,
            std=std,
            digest=dataset.digest(),
            shards=tuple(shards),
            cmray_version=__version__,
        )
        (tmp / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        if out.is_dir():
            out.rmdir()
        os.chmod(tmp, 0o755)
        os.replace(tmp, out)
    except BaseException as error:
        shutil.rmtree(tmp, ignore_errors=True)
        if isinstance(error, OSError):  # such as a full disk
            raise DataError(f"cannot write {out}: {error.strerror or error}") from None
        raise
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared dataset. Raises DataError when there is none or it cannot be understood."""
    path = folder / MANIFEST
    try:
        if not folder.is_dir():
            raise DataError(f"data folder {folder} does not exist; `cmray data prepare NAME --out {folder}` makes one")
        if not path.is_file():
            raise DataError(f"{folder} has no {MANIFEST}: it is not a prepared dataset, or its preparation was cut off")
        raw: dict[str, Any] = json.loads(path.read_text())
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format_version {version!r}; this cmray reads version {FORMAT_VERSION}")
        return Manifest.model_validate(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def verify_shards(folder: Path, manifest: Manifest, *, rehash: bool) -> None:
    """Checks that every shard is there in its recorded size and, with `rehash`, content. Raises DataError."""
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file():
            raise DataError(f"{folder} lacks {shard.file}, which its manifest lists")
        size = path.stat().st_size
        if size != shard.bytes or (rehash and sha256_of(path) != shard.sha256):
            raise DataError(
                f"{path} changed after preparation ({size} bytes, the manifest says {shard.bytes}"
                f"{'' if size != shard.bytes else ', but another SHA-256'}); prepare the dataset again"
            )


def shard_paths(folder: Path, manifest: Manifest) -> list[str]:
    return [str(folder / shard.file) for shard in manifest.shards]


def collect(manifest: Manifest, columns: list[dict[str, np.ndarray]]) -> ImageDataset:
    """A dataset from batches of rows in any order: the `index` column puts them in place.

    Raises:
        DataError: rows are missing or twice there, or the content is not what the manifest's digest says.
    """
    images = np.empty((manifest.count, *manifest.shape), dtype=np.uint8)
    labels = np.empty(manifest.count, dtype=np.int64) if manifest.classes else None
    seen = np.zeros(manifest.count, dtype=np.int64)
    for batch in columns:
        index = batch["index"]
        if len(index) and not 0 <= index.min() <= index.max() < manifest.count:
            raise DataError(f"{manifest.name}: a row's index is outside 0 to {manifest.count - 1}; prepare it again")
        images[index] = np.stack(list(batch["image"])) if batch["image"].dtype == object else batch["image"]
        if labels is not None:
            labels[index] = batch["label"]
        np.add.at(seen, index, 1)
    if not (seen == 1).all():
        raise DataError(f"{manifest.name}: {(seen != 1).sum()} of {manifest.count} rows are missing or doubled")
    dataset = ImageDataset(manifest.name, manifest.split, manifest.source, images, labels, manifest.classes)
    if dataset.digest() != manifest.digest:
        raise DataError(f"{manifest.name}: the shards' content does not match the manifest's digest; prepare it again")
    return dataset


def read_shards(folder: Path) -> ImageDataset:
    """The whole dataset read in this process, checked against its manifest. Raises DataError."""
    manifest = read_manifest(folder)
    verify_shards(folder, manifest, rehash=True)
    batches = []
    for path in shard_paths(folder, manifest):
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        image = table.column("image").combine_chunks()
        batch = {"index": table.column("index").to_numpy(), "image": image.to_numpy_ndarray()}
        if "label" in table.column_names:
            batch["label"] = table.column("label").to_numpy()
        batches.append(batch)
    return collect(manifest, batches)


def _table(dataset: ImageDataset, rows: np.ndarray) -> pa.Table:
    values = pa.array(np.ascontiguousarray(dataset.images[rows]).reshape(-1))
    # built by hand: from_numpy_ndarray permutes the axes of images with one channel
    storage = pa.FixedSizeListArray.from_arrays(values, int(np.prod(dataset.shape)))
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), dataset.shape), storage)
    columns: dict[str, Any] = {"index": pa.array(rows, pa.int64()), "image": tensor}
    if dataset.labels is not None:
        columns["label"] = pa.array(dataset.labels[rows], pa.int64())
    return pa.table(columns)
