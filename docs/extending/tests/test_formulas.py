"""What cmray's own tests cannot know of these components: their formulas."""

import numpy as np
import pytest
import torch

from cmray.core.distances import distances
from cmray.datasets import datasets
from cmray.editing import editing_tasks
from cmray.metrics.measures.base import Sample, measures
from cmray.metrics.statistics import FeatureStatistics
from cmray.objectives import ObjectiveContext, objectives

CPU = torch.device("cpu")


def test_charbonnier_is_its_formula():
    a, b = torch.rand(2, 3, 1, 4, 4)
    d = distances.parse({"name": "charbonnier", "eps": 0.1}).build(CPU)
    x, y = (t.double().numpy() for t in (a, b))
    expected = (np.sqrt((x - y) ** 2 + 0.1**2) - 0.1).mean(axis=(1, 2, 3))
    assert d(a, b).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("skip", [1, 3])
def test_pairs_are_so_many_intervals_apart_up_to_the_end_of_the_grid(skip):
    context = ObjectiveContext(0.002, 80.0, 7.0, 0.5, 10, CPU)
    objective = objectives.parse({"name": "cd-skip", "skip": skip, "num_sigmas": 6}).build(context)
    sigmas = objective.sigmas_at(0)
    at = objective.levels(0, 200, torch.Generator().manual_seed(0))
    low = torch.searchsorted(sigmas, at.sigma_lo)
    high = torch.searchsorted(sigmas, at.sigma_hi)
    assert torch.equal(high, (low + skip).clamp(max=5))
    assert torch.equal(at.dt, at.sigma_hi - at.sigma_lo)
    if skip == 1:
        cd = objectives.parse({"name": "cd", "num_sigmas": 6}).build(context)
        assert torch.equal(cd.levels(0, 200, torch.Generator().manual_seed(0)).sigma_hi, at.sigma_hi)


def test_blobs_have_their_means_and_spread():
    blobs = datasets.parse({"name": "blobs", "count": 4_000, "classes": 2, "spread": 0.05})
    source = blobs.open()
    x = source.images[:, 0] / 127.5 - 1
    inside = np.abs(blobs.means()) < 0.8  # where nothing is cut
    for k in range(2):
        values = x[source.labels == k]
        assert values.mean(0)[inside[k]] == pytest.approx(blobs.means()[k][inside[k]], abs=0.01)
        assert values.std(0)[inside[k]] == pytest.approx(0.05, rel=0.1)


def test_outpainting_keeps_the_middle():
    task = editing_tasks.parse({"name": "outpaint", "margin": 3})
    known = task.prepare(torch.rand(2, 3, 8, 8))
    assert (~known.unknown).sum() == 4


def test_the_mean_shift_of_a_shifted_copy_is_the_shift():
    x = np.random.default_rng(0).normal(size=(64, 5))

    def side(rows):
        blocks = []
        for part in np.split(rows, 4):
            statistics = FeatureStatistics(5)
            statistics.update(part)
            blocks.append(statistics)
        whole = FeatureStatistics(5)
        whole.update(rows)
        return Sample(len(rows), blocks, whole)

    assert measures.parse("mean-shift").estimate(side(x + 2), side(x), 0).value == pytest.approx(5 * 4)
