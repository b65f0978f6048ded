"""What all parts of the benchmark of datasets share: the source, its shards, the settings, and what was found."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cmray.cluster.data import stream_units
from cmray.config.run import RunConfig
from cmray.core.files import sha256_of
from cmray.datasets import datasets
from cmray.datasets.images import ImageRule
from cmray.datasets.location import Location
from cmray.datasets.manifest import Manifest, Shard
from cmray.datasets.parquet import parquet_files
from cmray.datasets.prepare import SHARD_BYTES, Preparation
from cmray.datasets.shards import iterate
from cmray.datasets.writer import ShardWriter
from cmray.engine.stream import ReadUnits, StreamedDataset

#: title, columns, rows
Table = tuple[str, list[str], list[list[str]]]


class Bench:
    """What was measured so far."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder = args, folder
        self.tables: list[Table] = []
        self.notes: list[str] = []
        self.targets: list[list[str]] = []
        #: images per second by feed: peers and cmray's
        self.peers: dict[str, float] = {}
        self.feeds: dict[str, list[float]] = {}
        source = _digits(folder / "source") if args.digits else args.source
        self.config = datasets.parse({"name": "parquet" if args.digits else "cifar10", "source": source})
        self.files, _ = parquet_files(source, None if args.digits else "train")
        self.place = Location(folder / "shards")
        self.manifest: Manifest
        self.prepared: list[list[str]] = []

    def say(self, text: str) -> None:
        print(text, flush=True)

    def preparation(self, out: Path) -> Preparation:
        rule = ImageRule.model_validate({**self.config.usual_rule, "encoding": "raw"})
        return Preparation(self.config.open(), rule, out, None)

    def run(self, *, world: int = 1, flip: bool = False, **train: Any) -> RunConfig:
        side = self.manifest.shape[1]
        multipliers = [1, 2, 4] if side >= 32 else [1, 2]
        return RunConfig.model_validate(
            {
                "data": {"path": str(self.place), "flip": flip},
                "net": {
                    "name": "ddpmpp",
                    "channels": 44 if side >= 32 else 16,
                    "multipliers": multipliers,
                    "blocks": 1,
                    "dropout": 0.0,
                    "attention_resolutions": [side // 2],
                },
                "noise": {"sigma_data": 0.5},
                "objective": {"name": "edm"},
                "train": {"steps": 1, "batch_size": self.args.batch * world, **train},
                "resources": {"workers": world},
            }
        )

    def streamed(self, read: ReadUnits = stream_units) -> StreamedDataset:
        return StreamedDataset(self.place, self.manifest, read)

    def repeated(self, times: int) -> StreamedDataset:
        """A dataset of the same images `times` over, in shards of its own."""
        if times == 1:
            return self.streamed()
        m, folder = self.manifest, self.folder / f"{times}x"
        folder.mkdir()
        shards: list[Shard] = []
        writer = ShardWriter(folder, m.group_rows, 0)
        for _ in range(times):
            for images, labels in iterate(self.place, m):
                writer.add(images, labels)
                if writer.bytes >= SHARD_BYTES:
                    shards.append(_named(writer, folder, len(shards)))
        if writer.rows:
            shards.append(_named(writer, folder, len(shards)))
        larger = m.model_copy(update={"count": m.count * times, "shards": tuple(shards)})
        return StreamedDataset(Location(folder), larger, stream_units)

    def target(self, what: str, found: float, form: str, bound: float, at_least: bool) -> None:
        met = found >= bound if at_least else found <= bound
        wanted = f"{'at least' if at_least else 'at most'} {form.format(bound)}"
        self.targets.append([what, form.format(found), wanted, "yes" if met else "no"])


def _named(writer: ShardWriter, folder: Path, number: int) -> Shard:
    """Ends the writer's shard."""
    made = writer.close()
    assert made is not None
    path, rows = made
    path = path.rename(folder / f"shard-{number:05d}.parquet")
    return Shard(file=path.name, rows=rows, bytes=path.stat().st_size, sha256=sha256_of(path))


def _digits(folder: Path) -> Path:
    """scikit-learn's digits as Parquet files in the Hugging Face layout."""
    folder.mkdir()
    digits: Any = datasets.parse("digits").open()
    rows = []
    for pixels, label in zip(digits.images[:, 0], digits.labels.tolist(), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": label})
    half = len(rows) // 2
    for i, part in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"train-{i:05d}-of-00002.parquet")
    return folder
