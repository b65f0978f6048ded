"""What chunks keep: small for wide features, whole or not there, and gone when nobody needs it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from small_run import CPU

from cmray.core.errors import StorageError
from cmray.engine.measure import FINE_DIM, Gathered, Wanted, side
from cmray.engine.parts import forget, holds, kept, read_arrays, write_arrays
from cmray.metrics.extractors import Extractor
from cmray.metrics.extractors.base import Outputs
from cmray.metrics.statistics import FeatureStatistics


class Pixels(Extractor):
    """The first `dim` values of an image are its features."""

    name: ClassVar[str] = "pixels"
    sha256 = "0" * 64

    def __init__(self, dim: int):
        super().__init__(CPU)
        self.dim = dim

    def check(self, shape):
        pass

    def describe(self, images, wanted):
        return Outputs(images.flatten(1)[:, : self.dim].float())


IMAGES = torch.randint(0, 256, (100, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dim", "groups"), [(FINE_DIM, 4), (FINE_DIM + 1, 1)])
def test_statistics_of_wide_features_are_kept_for_whole_chunks(dim, groups):
    wanted = Wanted("pixels", "pixels", ("features",))
    gathered = Gathered(Pixels(dim), wanted)
    for block in IMAGES.split(30):
        gathered.add(block)
    arrays = gathered.arrays()
    assert set(arrays) == wanted.arrays()
    assert arrays["pixels.outer"].shape == (groups, dim, dim)
    sample = side([arrays, arrays], wanted)
    assert (sample.n, len(sample.blocks)) == (200, 2 * groups)
    rows = IMAGES.flatten(1)[:, :dim].float().numpy()
    np.testing.assert_array_equal(sample.features, np.concatenate([rows, rows]))
    whole = FeatureStatistics(dim)
    whole.update(sample.features)
    np.testing.assert_allclose(sample.statistics.covariance, whole.covariance, rtol=1e-9, atol=1e-6)


def test_a_chunk_is_made_once(tmp_path):
    file, made = tmp_path / "folder" / "x.npz", []

    def make():
        made.append(1)
        return {"a": np.arange(3), "b.c": np.eye(2)}

    assert kept(str(file), {"a"}, make) == {}
    assert kept(str(file), {"a", "b.c"}, make) == {}
    assert len(made) == 1
    np.testing.assert_array_equal(read_arrays(file)["a"], np.arange(3))
    kept(str(file), {"a", "more"}, make)
    assert len(made) == 2
    assert list(kept(None, {"a"}, make)) == ["a", "b.c"]


def test_half_a_file_is_none(tmp_path):
    file = tmp_path / "x.npz"
    write_arrays(file, {"a": np.arange(1000)})
    assert holds(file, {"a"})
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"], "nothing but whole files"
    file.write_bytes(file.read_bytes()[:-40])
    assert not holds(file, {"a"})
    with pytest.raises(StorageError, match=r"x\.npz cannot be read: .*remove it"):
        read_arrays(file)
    with pytest.raises(StorageError, match="cannot be written"):
        write_arrays(file / "below", {"a": np.arange(3)})


def test_forgetting_leaves_other_samples_alone(tmp_path):
    for name in ("one", "two"):
        write_arrays(tmp_path / "parts" / name / "x.npz", {"a": np.arange(3)})
    forget(tmp_path / "parts" / "one")
    assert holds(tmp_path / "parts" / "two" / "x.npz", {"a"})
    forget(tmp_path / "parts" / "two")
    assert not (tmp_path / "parts").exists()
