"""How training draws noise levels."""

import math

import pytest
import torch

from cmray.core.grids import karras_sigmas
from cmray.core.times import (
    KarrasCurve,
    TimeSampler,
    TimesConfig,
    lognormal_probabilities,
    lognormal_sigma,
    time_samplers,
    uniform_index,
)

CPU = torch.device("cpu")
CURVE = KarrasCurve(0.002, 80.0, 7.0)


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


def sampler(values, bins=17):
    return time_samplers.parse(values).build(CPU, bins)


def test_the_curve_passes_through_the_grid_and_its_slope_is_its_derivative():
    u = torch.linspace(0, 1, 18, dtype=torch.float64)
    torch.testing.assert_close(CURVE.sigma(u), torch.from_numpy(karras_sigmas(18, 0.002, 80.0)))
    inside = u[1:-1]
    numeric = (CURVE.sigma(inside + 1e-6) - CURVE.sigma(inside - 1e-6)) / 2e-6
    torch.testing.assert_close(CURVE.slope(CURVE.sigma(inside)), numeric, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ends", [(0.002, 80.0), (0.01, 1.7), (0.3, 500.0)])
@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_no_level_of_the_curve_is_beyond_its_ends_however_it_is_rounded(ends, rho):
    level = KarrasCurve(*ends, rho).sigma(torch.linspace(0, 1, 10_001))
    low, high = torch.tensor(ends)
    assert (level >= low).all()
    assert (level <= high).all()
    torch.testing.assert_close(level[[0, -1]], torch.stack([low, high]))


def test_discrete_lognormal_probabilities_are_the_mass_between_neighbours():
    sigmas = torch.from_numpy(karras_sigmas(30, 0.002, 80.0))
    p = lognormal_probabilities(sigmas, -1.1, 2.0)
    normal = torch.distributions.Normal(-1.1, 2.0)
    mass = normal.cdf(sigmas.log()).diff()
    torch.testing.assert_close(p, mass / mass.sum())
    drawn = sampler("lognormal").index(100_000, sigmas.float(), generator()).value
    torch.testing.assert_close(torch.bincount(drawn, minlength=29) / 100_000, p.float(), rtol=0, atol=0.006)


@pytest.mark.parametrize("name", time_samplers.names())
def test_every_sampler_draws_intervals_and_levels_from_the_generator_only(name):
    sigmas = torch.from_numpy(karras_sigmas(18, 0.002, 80.0)).float()
    for draw in (
        lambda g: sampler(name).index(64, sigmas, g).value,
        lambda g: sampler(name).sigma(64, CURVE, g).value,
    ):
        torch.manual_seed(1)
        first = draw(generator(5))
        torch.manual_seed(2)
        assert torch.equal(draw(generator(5)), first)
        assert not torch.equal(draw(generator(6)), first)
    index = sampler(name).index(5000, sigmas, generator()).value
    assert index.dtype == torch.int64
    assert (index.min(), index.max()) == (0, 16)
    level = sampler(name).sigma(5000, CURVE, generator()).value
    assert level.dtype == torch.float32
    assert (level > 0).all()


def test_uniform_levels_are_uniform_along_the_curve():
    level = sampler("uniform").sigma(20_000, CURVE, generator()).value.double()
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    u = (level ** (1 / 7) - low) / (high - low)
    counts = torch.histc(u, 10, 0, 1)
    assert ((counts - 2000).abs() < 5 * math.sqrt(2000)).all()


LEARNS = {"name": "loss-second-moment", "history": 3, "uniform_share": 0.1}


class TestLossSecondMoment:
    def test_it_is_uniform_until_every_bin_is_full(self):
        times = sampler(LEARNS, bins=4)
        times.observe(torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]), torch.arange(11.0))
        assert times.probabilities().tolist() == [0.25] * 4
        times.observe(torch.tensor([3]), torch.tensor([1.0]))
        assert times.probabilities().tolist() != [0.25] * 4

    def test_its_probabilities_are_root_mean_squares_of_the_last_losses_and_a_uniform_share(self):
        times = sampler(LEARNS, bins=3)
        seen = {0: [], 1: [], 2: []}
        g = generator()
        for _ in range(12):
            bins, losses = torch.randint(3, (7,), generator=g), torch.rand(7, generator=g)
            times.observe(bins, losses)
            for b, loss in zip(bins.tolist(), losses.tolist(), strict=True):
                seen[b].append(loss)
        moments = torch.tensor([math.sqrt(sum(x * x for x in seen[b][-3:]) / 3) for b in range(3)], dtype=torch.float64)
        expected = 0.9 * moments / moments.sum() + 0.1 / 3
        torch.testing.assert_close(times.probabilities(), expected, rtol=1e-6, atol=0)

    def test_its_importance_undoes_its_draws(self):
        times = sampler(LEARNS, bins=3)
        times.observe(torch.arange(3).repeat(3), torch.tensor([1.0, 5.0, 20.0]).repeat(3))
        draw = times.sigma(60_000, KarrasCurve(0.002, 80.0, 7.0), generator())
        shares = torch.bincount(draw.bin, weights=draw.importance.double()) / 60_000
        torch.testing.assert_close(shares, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.02)
        assert draw.importance.mean().item() == pytest.approx(1, abs=0.02)
        edges = torch.from_numpy(karras_sigmas(4, 0.002, 80.0))
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        inside = (draw.value.double() ** (1 / 7) - low) / (high - low) * 3 - draw.bin
        assert inside.mean().item() == pytest.approx(0.5, abs=0.01), "anywhere in a bin alike"
        assert inside.std().item() == pytest.approx(12**-0.5, abs=0.005)
        assert (draw.value >= edges[draw.bin] - 1e-3).all()
        assert (draw.value <= edges[draw.bin + 1] + 1e-3).all()

    def test_draws_from_a_grid_weigh_as_they_are_drawn(self):
        times = sampler(LEARNS, bins=3)
        times.observe(torch.arange(3).repeat(3), torch.tensor([1.0, 5.0, 20.0]).repeat(3))
        draw = times.index(30_000, torch.tensor([0.1, 0.5, 2.0, 80.0]), generator())
        assert torch.equal(draw.bin, draw.value)
        p = times.probabilities()
        assert torch.equal(draw.importance, (1 / (3 * p[draw.value])).float())
        assert draw.importance.mean().item() == pytest.approx(1, abs=0.03)
        torch.testing.assert_close(torch.bincount(draw.value, minlength=3) / 30_000, p.float(), rtol=0, atol=0.01)

    def test_its_state_goes_into_another_one(self):
        one, other = sampler(LEARNS, bins=2), sampler(LEARNS, bins=2)
        one.observe(torch.tensor([0, 1] * 3), torch.tensor([1.0, 3.0] * 3))
        other.load_state({k: v.clone() for k, v in one.state().items()})
        assert torch.equal(one.probabilities(), other.probabilities())
        one.observe(torch.tensor([0]), torch.tensor([9.0]))
        assert not torch.equal(one.probabilities(), other.probabilities()), "the state must not be shared"

    def test_a_loss_that_is_not_finite_does_not_stop_the_draws(self):
        """Whoever logs the loss says that training diverged; a draw that fails would hide it."""
        times = sampler(LEARNS, bins=2)
        times.observe(torch.tensor([0, 1] * 3), torch.tensor([1.0, math.nan, math.inf, 3.0, 1.0, 1.0]))
        moments = [math.sqrt(2 / 3), math.sqrt(10 / 3)]  # of 1, 0, 1 and of 0, 3, 1
        expected = [0.9 * moment / sum(moments) + 0.05 for moment in moments]
        assert times.probabilities().tolist() == pytest.approx(expected, rel=1e-6)
        times.sigma(10, CURVE, generator())

    def test_a_grid_of_another_size_is_refused(self):
        with pytest.raises(ValueError, match="9 intervals, not 4 bins"):
            sampler(LEARNS, bins=4).index(3, torch.linspace(1, 2, 10), generator())


def test_the_bases_draw_nothing():
    with pytest.raises(TypeError, match="TimesConfig does not define build"):
        TimesConfig().build(CPU, 3)
    for call in (
        lambda: TimeSampler().index(1, torch.ones(2), generator()),
        lambda: TimeSampler().sigma(1, CURVE, generator()),
    ):
        with pytest.raises(TypeError, match="TimeSampler does not define"):
            call()
