"""What chunks keep: small for wide features, whole or not there, and gone when nobody needs it."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from small_run import CPU

from cmray.core.errors import StorageError
from cmray.engine.measure import FINE_DIM, Gathered, Wanted, side
from cmray.engine.parts import InUse, folder_for, forget, holds, kept, read_arrays, write_arrays
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


def test_who_wants_more_and_who_wants_less_do_not_share_a_file(tmp_path):
    less, more = (folder_for(tmp_path, "samples", names) for names in (["a"], ["b", "a"]))
    assert less != more
    assert more == folder_for(tmp_path, "samples", ["a", "b"])
    other = folder_for(tmp_path, "others", ["a"])

    def make():
        return {"a": np.zeros(2)}

    kept(str(more / "x.npz"), {"a", "b"}, lambda: {"a": np.ones(2), "b": np.ones(2)})
    for folder in (less, other):
        kept(str(folder / "x.npz"), {"a"}, make)
    assert read_arrays(less / "x.npz")["a"].tolist() == [1, 1], "taken over"
    assert list(read_arrays(less / "x.npz")) == ["a"]
    assert read_arrays(other / "x.npz")["a"].tolist() == [0, 0], "of other samples"


def test_the_last_to_use_a_folder_removes_it(tmp_path):
    folder = folder_for(tmp_path / "parts", "samples", ["a"])
    beside, others = folder_for(folder.parent, "samples", ["b"]), folder_for(folder.parent, "others", ["a"])
    with InUse([folder]) as one, InUse([folder]) as two, InUse([others]):
        for path in (folder, beside, others):
            write_arrays(path / "x.npz", {"a": np.arange(3)})
        one.forget(folder)
        assert holds(folder / "x.npz", {"a"})
        assert not beside.exists(), "nobody used it"
        two.forget(folder)
        assert not folder.exists()
    assert holds(others / "x.npz", {"a"}), "nobody asked for it to go"


def test_a_folder_that_holds_nothing_does_not_stay(tmp_path):
    folder = tmp_path / "parts" / "samples-x"
    with pytest.raises(KeyboardInterrupt), InUse([folder]):
        raise KeyboardInterrupt
    assert not folder.parent.exists()


def test_a_process_that_is_killed_uses_nothing_any_more(tmp_path):
    folder = tmp_path / "parts" / "samples-x"
    program = "import sys,time; from pathlib import Path; from cmray.engine.parts import InUse\n"
    program += "with InUse([Path(sys.argv[1])]): print('in', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"
            write_arrays(folder / "x.npz", {"a": np.arange(3)})
            with InUse([folder]) as used:
                used.forget(folder)
                assert folder.exists()
        finally:
            other.kill()
    with InUse([folder]) as used:
        used.forget(folder)
    assert not folder.exists()
