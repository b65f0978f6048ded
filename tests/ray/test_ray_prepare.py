"""Preparing a dataset here first, and on Ray once that is quicker."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from cmray.cluster import prepare as preparing
from cmray.cluster.prepare import _RayMapper
from cmray.datasets import datasets
from cmray.datasets.images import ImageRule
from cmray.datasets.prepare import Preparation
from cmray.datasets.shards import read_shards


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("saved", [1.0, -1.0])
def test_preparing_goes_over_to_ray_once_that_is_quicker(tmp_path, monkeypatch, saved):
    """The first pieces are made here. Either way it is the same dataset."""
    monkeypatch.setattr(preparing, "TRIAL", 0.0)
    monkeypatch.setattr(preparing, "saved_by_ray", lambda seconds, cpus: saved)
    config = datasets.parse("digits")
    images = config.open()
    rows = [{"image": {"bytes": png(image), "path": None}, "label": 0} for image in images.images[:, 0]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = datasets.parse({"name": "parquet", "source": tmp_path / "a.parquet"}).open()
    through, ray_began = [], []
    monkeypatch.setattr(preparing, "_RayMapper", lambda cpus: ray_began.append(list(through)) or _RayMapper(cpus))
    preparation = Preparation(source, ImageRule.model_validate({"channels": 1, "encoding": "raw"}), tmp_path / "out", 4)
    manifest = preparing.prepare(preparation, None, through.append)
    assert through == [0, 449, 898, 1024, 1348, 1797]
    assert ray_began == ([[0, 449]] if saved > 0 else [])
    np.testing.assert_array_equal(read_shards(tmp_path / "out").images, images.images)
    assert manifest.count == 1797
    assert not ray.is_initialized()


def test_ray_saves_time_only_of_long_work_on_several_cores():
    assert preparing.saved_by_ray(1e9, 1) < 0
    assert preparing.saved_by_ray(10, 2) < 0 < preparing.saved_by_ray(20, 2)
