"""How training draws noise levels."""

import math

import pytest
import torch

from cmray.core.times import lognormal_sigma, uniform_index


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_sigmas", [2, 3, 18])
def test_every_interval_of_the_grid_is_drawn_equally_often_and_no_other(num_sigmas):
    n = uniform_index(20_000, num_sigmas, generator())
    counts = torch.bincount(n, minlength=num_sigmas)
    assert n.dtype == torch.int64
    assert counts.shape == (num_sigmas,)  # nothing above N - 1 ...
    assert counts[-1] == 0  # ... and N - 1 itself is no lower end
    expected = 20_000 / (num_sigmas - 1)
    assert ((counts[:-1] - expected).abs() < 5 * math.sqrt(expected)).all()


def test_log_sigma_has_the_asked_mean_and_spread():
    logs = lognormal_sigma(100_000, -1.2, 1.5, generator()).log()
    assert logs.dtype == torch.float32
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.02)
    assert logs.std().item() == pytest.approx(1.5, abs=0.02)


def test_draws_come_from_the_generator_only():
    for draw in (lambda g: uniform_index(64, 18, g), lambda g: lognormal_sigma(64, -1.2, 1.2, g)):
        torch.manual_seed(1)
        first = draw(generator(5))
        torch.manual_seed(2)
        assert torch.equal(draw(generator(5)), first)
        assert not torch.equal(draw(generator(6)), first)
