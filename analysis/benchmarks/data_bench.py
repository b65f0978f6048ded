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
from cmray.datasets import datasets
from cmray.datasets.images import ImageRule
from cmray.datasets.location import Location
from cmray.datasets.manifest import Manifest
from cmray.datasets.parquet import parquet_files
from cmray.datasets.prepare import Preparation
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

    def streamed(self, read: ReadUnits = stream_units, times: int = 1) -> StreamedDataset:
        """The shards, as if there were `times` as many."""
        m = self.manifest
        larger = m.model_copy(update={"count": m.count * times, "shards": m.shards * times})
        return StreamedDataset(self.place, larger, read)

    def target(self, what: str, found: float, form: str, bound: float, at_least: bool) -> None:
        met = found >= bound if at_least else found <= bound
        wanted = f"{'at least' if at_least else 'at most'} {form.format(bound)}"
        self.targets.append([what, form.format(found), wanted, "yes" if met else "no"])


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
