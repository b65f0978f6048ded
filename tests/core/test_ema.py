"""Moving averages against their closed form."""

import pytest
import torch

from cmray.core.ema import EMA

RATES = (0.0, 0.5, 0.9, 0.999, 0.9999)


def test_many_updates_are_the_weighted_sum_of_all_values():
    g = torch.Generator().manual_seed(0)
    path = [torch.randn(7, generator=g) for _ in range(60)]
    ema = EMA(path[0], RATES)
    for params in path[1:]:
        ema.update(params)
    steps = len(path) - 1
    assert ema.rates == RATES
    for rate in RATES:
        expected = rate**steps * path[0].double()
        for k, params in enumerate(path[1:], start=1):
            expected = expected + (1 - rate) * rate ** (steps - k) * params.double()
        torch.testing.assert_close(ema.averages[rate].double(), expected, rtol=1e-5, atol=1e-6)


def test_towards_a_constant_the_distance_decays_by_the_rate():
    ema = EMA(torch.zeros(1), [0.9])
    for _ in range(20):
        ema.update(torch.ones(1))
    assert ema.averages[0.9].item() == pytest.approx(1 - 0.9**20, rel=1e-5)


def test_rate_zero_is_a_copy_and_averages_share_no_memory_with_the_parameters():
    params = torch.randn(5, requires_grad=True)
    ema = EMA(params, [0.0, 0.5])
    with torch.no_grad():
        start = params.clone()
        params.add_(1)
    assert torch.equal(ema.averages[0.5], start)
    before = params.detach().clone()
    ema.update(params)
    assert torch.equal(ema.averages[0.0], before)
    assert torch.equal(params, before)
    assert not any(a.requires_grad for a in ema.averages.values())
