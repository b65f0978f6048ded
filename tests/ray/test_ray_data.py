"""Datasets on a real Ray: prepared in parallel, streamed in order, fed to trials in every way."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_run import CT, apart, good, here, write

from cmray.cluster.connect import connected
from cmray.cluster.data import stream_units
from cmray.cluster.preemption import SWITCH
from cmray.cluster.prepare import _RayMapper
from cmray.core.errors import DataError
from cmray.datasets import datasets
from cmray.datasets.images import ImageRule, Resolved
from cmray.datasets.location import Location
from cmray.datasets.manifest import read_manifest
from cmray.datasets.prepare import Preparation, make_piece
from cmray.engine.stream import StreamBatches, StreamedDataset, StreamOrder, read_here
from cmray.tracking.events import read_events


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    children, watcher = set(psutil.Process().children(recursive=True)), os.environ.get(SWITCH)
    with connected(None):
        assert os.environ[SWITCH] == (watcher or "0"), "nobody takes this machine away"
        yield
    assert os.environ.get(SWITCH) == watcher, "a cluster that is joined next has nodes that are taken away"
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - children, timeout=20)
    assert not alive, f"Ray was shut down, but there is still {alive}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "digits"
    good(here("data", "prepare", "digits", "--out", folder, "--shards", 11))
    return folder


def test_preparing_in_parallel_gives_the_same_bytes(started, tmp_path):
    config = datasets.parse("digits")
    Preparation(config.open(), ImageRule(), tmp_path / "one", 7).run()
    Preparation(config.open(), ImageRule(), tmp_path / "many", 7).run(_RayMapper(2))
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes(), path.name


def test_an_error_in_a_task_is_the_users_own(started, tmp_path):
    rows = pa.table({"image": [{"bytes": b"x", "path": None}] * 3})
    pq.write_table(rows, tmp_path / "a.parquet")
    data = datasets.parse({"name": "parquet", "source": tmp_path / "a.parquet"}).open()
    resolved = Resolved(ImageRule.model_validate({"channels": 1, "encoding": "raw"}), (1, 4, 4))
    (tmp_path / "a.parquet").unlink()
    mapped = _RayMapper(2)(partial(make_piece, data, resolved), [(0, 3)])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read") as found:
        list(mapped)
    assert "\n" not in str(found.value)


def test_units_come_through_ray_in_the_order_they_were_asked_for(started, prepared):
    manifest = read_manifest(prepared)
    order = StreamOrder(manifest.blocks(), manifest.group_rows, 0, 0, 1, 500)
    units = [unit for window in islice(order.after(0, 0), 9) for unit in window.units]
    place = Location(prepared)
    here_rows, ray_rows = (
        [np.concatenate(column) for column in zip(*read(place, manifest, iter(units)), strict=True)]
        for read in (read_here, stream_units)
    )
    for one, other in zip(here_rows, ray_rows, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_through_ray_are_those_of_reading_here(started, prepared):
    manifest = read_manifest(prepared)
    order = StreamOrder(manifest.blocks(), manifest.group_rows, 3, 1, 2, 300)
    sets = [StreamedDataset(Location(prepared), manifest, read) for read in (read_here, stream_units)]
    one, other = (StreamBatches(data, 64, order) for data in sets)
    for step in (0, 1, 2, 40, 41):
        for a, b in zip(one.host(step, 1, 2), other.host(step, 1, 2), strict=True):
            np.testing.assert_array_equal(a, b)
    one.close()
    other.close()


def test_a_shard_that_vanishes_is_named_through_ray(started, prepared, tmp_path):
    before = {t.name for t in threading.enumerate()}
    folder = tmp_path / "set"
    good(here("data", "prepare", "digits", "--out", folder, "--shards", 3))
    manifest = read_manifest(folder)
    (folder / manifest.shards[1].file).unlink()
    rows = StreamBatches(
        StreamedDataset(Location(folder), manifest, stream_units),
        64,
        StreamOrder(manifest.blocks(), manifest.group_rows, 0, 0, 1, 100),
    )
    with pytest.raises(DataError, match=r"shard-00001\.parquet cannot be read"):
        [rows.host(step, 0, 1) for step in range(40)]
    rows.close()
    deadline = time.monotonic() + 10
    while {t.name for t in threading.enumerate()} - before - {"Prefetcher"}:  # which sleeps for good
        assert time.monotonic() < deadline, "a thread of Ray Data reads on, and would end us if it outlived Ray"
        time.sleep(0.05)


# ---------------------------------------------------------------- whole runs, each on its own Ray

TWO_WORKERS = {"resources": {"workers": 2, "cpus_per_worker": 1}}


@pytest.mark.slow
@pytest.mark.parametrize("feed", ["stream", "mmap"])
def test_two_workers_and_a_grid_train_from_shards(tmp_path, prepared, feed):
    """A DDP run and two one-worker trials beside each other: no reader waits for a CPU that trials hold."""
    data = {"path": str(prepared), "feed": feed, **({"shuffle_buffer": 200} if feed == "stream" else {})}
    panels = {
        "ddp": {"base": TWO_WORKERS},
        "seeds": {"grid": {"seed": [1, 2, 3]}},
    }
    file = write(tmp_path / "study.yaml", {**CT, "name": "study", "data": data, "panels": panels})
    ran = apart(tmp_path, "sweep", file, "--storage", tmp_path / "storage", "--tracking-uri", "none", "--json")
    assert ran.code == 0, ran.err
    folders = [p.parent for p in (tmp_path / "storage" / "study").glob("*/result.json")]
    assert len(folders) == 4
    for folder in folders:
        losses = [e.metrics["loss"] for e in read_events(folder / "events.jsonl") if e.kind == "train"]
        assert losses
        assert np.isfinite(losses).all()
    words = {"stream": "Streaming digits: 1,797 images", "mmap": "Mapping digits: 1,797 images"}
    assert words[feed] in ran.err
    again = apart(tmp_path, "sweep", file, "--storage", tmp_path / "storage", "--tracking-uri", "none", "--json")
    assert json.loads(again.out)["trained"] == 0
