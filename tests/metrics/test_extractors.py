"""What holds for every registered extractor, and what the base does for all of them."""

import pytest
import torch
from extractor_files import CPU, pixels

from cmray.cli.features import EXTRACTORS
from cmray.core.errors import DataError
from cmray.metrics.extractors import Extractor, Outputs, extractors

NAMES = extractors.names()


class Means(Extractor):
    """The mean of each channel, in parts of two images."""

    name = "means"
    dim = 3
    sha256 = "0" * 64
    outputs = frozenset({"features", "spatial"})
    spatial_dim = 4
    part = 2
    replicates = True

    def check(self, shape):
        self.check_rgb(shape)

    def describe(self, images, wanted):
        assert len(images) <= 2
        x = images.float().mean((2, 3)).expand(-1, 3)
        return Outputs(x, None, images[:, 0, :2, :2].flatten(1).float() if "spatial" in wanted else None)


def test_the_help_names_all_of_them():
    assert sorted(EXTRACTORS.split(", ")) == NAMES


@pytest.mark.parametrize("name", [n for n in NAMES if n != "digits"])
def test_what_is_missing_is_told_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {"name": name}
    if "weights" in extractors.get(name).model_fields:
        options["weights"] = str(tmp_path / "none")
    with pytest.raises(DataError, match=f"^extractor '{name}' needs (the file|path: FILE)") as error:
        extractors.parse(options).build(CPU)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_options_travel(name):
    config = extractors.parse(name)
    assert extractors.parse(config.model_dump(mode="json")) == config


def test_a_batch_is_worked_through_in_parts():
    images = pixels(5, 3, 6, 7)
    said = Means(CPU).extract(images)
    assert torch.equal(said.features, images.float().mean((2, 3)))
    assert torch.equal(said.spatial, images[:, 0, :2, :2].flatten(1).float())
    assert said.probabilities is None
    assert Means(CPU).extract(images, ()).spatial is None


def test_shapes_that_are_refused():
    means = Means(CPU)
    assert means(pixels(2, 1, 4, 4)).shape == (2, 3)
    for channels in (2, 4):
        with pytest.raises(DataError, match=f"or of 1, which is replicated; these are {channels}x4x4"):
            means(pixels(2, channels, 4, 4))


def test_an_extractor_without_maps_says_so():
    with pytest.raises(DataError, match="extractor 'means' has no maps to compare images by"):
        Means(CPU).features(torch.zeros(1, 3, 8, 8))
