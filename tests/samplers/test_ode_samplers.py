"""Samplers of the probability-flow ODE: what each declares is measured on the exact flow of Gaussian data."""

import itertools
import math

import numpy as np
import pytest
import torch
from gaussian_truth import Gaussian, measured_order

from cmray.core.grids import karras_sigmas
from cmray.core.rng import SampleNoise
from cmray.samplers import samplers
from cmray.samplers.deis_3 import ab_weights
from cmray.solvers import solvers
from cmray.solvers.base import slope

DATA = Gaussian()
ODE = [name for name in samplers.names() if samplers.get(name).order is not None]
#: from 80 to where leading terms of an error do not happen to cancel
LOW, HIGH = 0.1, 80.0


class Float64Noise:
    """Noise of a few samples in float64, so that small errors are errors of the sampler."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.draws = 0

    def draw(self):
        self.draws += 1
        return torch.randn((8, 1, 2, 2), generator=self.generator, dtype=torch.float64)


def grid(n, low=LOW, high=HIGH):
    return tuple(karras_sigmas(n, low, high).tolist())


def exact(sampler):
    """The flow to the lowest level, and from there what all but progressive distillation do: D, an Euler step to 0."""
    low, high = sampler.sigmas[0], sampler.sigmas[-1]
    x = DATA.flow(high * Float64Noise().draw(), high, low)
    return DATA.denoise(x, torch.full((8,), low, dtype=torch.float64)) if sampler.nfe_last else x


def errors_of(spec, intervals, **ends):
    found = []
    for n in intervals:
        sampler = samplers.parse({**spec, "sigmas": grid(n + 1, **ends)})
        found.append((sampler.sample(DATA.denoise, Float64Noise()) - exact(sampler)).abs().max().item())
    return found


def sample(denoise, sigmas, name, **options):
    return samplers.parse({"name": name, "sigmas": sigmas, **options}).sample(denoise, Float64Noise())


def two_points(x, sigma, label=None):
    """Data at +1 and -1: D = tanh(x/sigma^2), not linear in x."""
    return torch.tanh(x / sigma.reshape(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize("name", ODE)
def test_the_order_is_the_declared_one(name):
    errors = errors_of({"name": name}, (128, 256))
    assert errors[-1] < 0.02, f"{name} does not reach the exact flow: {errors}"
    assert measured_order(errors) == pytest.approx(samplers.get(name).order, abs=0.15), f"{name}: {errors}"


@pytest.mark.parametrize("name", ODE)
def test_the_order_holds_where_the_denoiser_is_not_linear(name):
    """Successive refinements stand in for the exact flow."""
    ends = [sample(two_points, grid(n + 1, 0.8, 20.0), name) for n in (128, 256, 512)]
    errors = [(a - b).abs().max().item() for a, b in itertools.pairwise(ends)]
    assert measured_order(errors) == pytest.approx(samplers.get(name).order, abs=0.25), f"{name}: differences {errors}"


def test_deis_started_where_trajectories_bend_is_of_the_order_of_its_first_steps():
    """The limit that its docstring tells: its first step is Euler's, so the whole is of order 2."""
    errors = errors_of({"name": "deis-3"}, (128, 256), high=1.0)
    assert measured_order(errors) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", ODE)
def test_an_ode_sampler_draws_its_start_and_nothing_else(name):
    noise = Float64Noise()
    sampler = samplers.parse({"name": name, "sigmas": grid(6)})
    assert sampler.is_deterministic
    sampler.sample(DATA.denoise, noise)
    assert noise.draws == 1


@pytest.mark.parametrize("name", ODE)
def test_it_is_exact_for_a_single_data_point(name):
    """D = c: the trajectory is the line from x to c, and every method of order 1 or more is exact."""
    x, sigmas = HIGH * Float64Noise().draw(), grid(7)
    out = sample(lambda x, sigma, label: torch.full_like(x, 0.7), sigmas, name)
    end = sigmas[0] / sigmas[-1] if name == "progressive-distillation" else 0
    torch.testing.assert_close(out, 0.7 + end * (x - 0.7), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ODE)
def test_a_run_keeps_nothing_for_the_next_one(name):
    sampler = samplers.parse({"name": name, "sigmas": grid(6)})
    first = sampler.sample(DATA.denoise, Float64Noise())
    sampler.sample(lambda x, sigma, label: 0 * x, Float64Noise())
    assert torch.equal(sampler.sample(DATA.denoise, Float64Noise()), first)


@pytest.mark.parametrize(
    ("name", "solver"), [("euler", "euler"), ("edm-heun", "heun"), ("dpm-solver-2", "dpm-solver-2")]
)
def test_steps_are_those_of_the_solver_and_the_last_is_the_denoiser(name, solver):
    sigmas, x = grid(6), HIGH * Float64Noise().draw()
    batch = [torch.full((8,), s, dtype=torch.float64) for s in sigmas]
    for here, there in itertools.pairwise(reversed(batch)):
        x = solvers.parse(solver).step(DATA.denoise, x, here, there, None)
    torch.testing.assert_close(sample(DATA.denoise, sigmas, name), DATA.denoise(x, batch[0]), rtol=1e-13, atol=1e-13)


def test_ddim_without_noise_is_euler_and_progressive_distillation_is_euler_that_ends_earlier():
    sigmas = grid(9, 0.002)
    euler = sample(two_points, sigmas, "euler")
    torch.testing.assert_close(sample(two_points, sigmas, "ddim"), euler, rtol=1e-13, atol=1e-13)
    x = sample(two_points, sigmas, "progressive-distillation")
    assert not torch.allclose(x, euler, rtol=0, atol=1e-5)
    last = two_points(x, torch.full((8,), sigmas[0], dtype=torch.float64))
    torch.testing.assert_close(last, euler, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("points", [(2.0,), (2.0, 3.5), (2.0, 3.5, 4.0), (2.0, 3.5, 4.0, 9.0)])
def test_adams_bashforth_weights_integrate_polynomials_through_their_points_exactly(points):
    for degree in range(len(points)):
        weighted = sum(w * p**degree for w, p in zip(ab_weights(points, 2.0, 1.2), points, strict=True))
        assert weighted == pytest.approx((1.2 ** (degree + 1) - 2.0 ** (degree + 1)) / (degree + 1), rel=1e-12)
    equal = ab_weights([0, -1, -2, -3], 0, 1)  # the classic ones
    np.testing.assert_allclose(equal, np.array([55, -59, 37, -9]) / 24, rtol=1e-13)


def test_deis_uses_no_more_than_four_points():
    """The sixth step from the start, by hand."""
    sigmas, seen = grid(8), []

    def denoise(x, sigma, label):
        seen.append((x, sigma[0].item(), slope(two_points, x, sigma, label)))
        return two_points(x, sigma)

    sample(denoise, sigmas, "deis-3")
    (x, at, _), (there, to, _) = seen[5], seen[6]
    last = seen[5:1:-1]
    by_hand = x + sum(w * e for w, (_, _, e) in zip(ab_weights([s for _, s, _ in last], at, to), last, strict=True))
    torch.testing.assert_close(there, by_hand)


def test_dpmpp_2m_solves_data_predictions_that_are_linear_in_lambda_almost_exactly():
    """Its second-order term is that of D = a + b lambda: x(t) = t [x/s + int e^lambda D d lambda]."""
    a, b, s, m, t = 0.3, 0.2, 4.0, 2.0, 1.0  # equal steps in lambda
    linear = lambda x, sigma, label: (a - b * sigma.log()).reshape(-1, 1, 1, 1).expand_as(x)
    at = lambda sigma: a - b * math.log(sigma)
    x = s * Float64Noise().draw()
    x = m / s * x + (1 - m / s) * at(s)
    x = t / m * x + (1 - t / m) * (1.5 * at(m) - 0.5 * at(s))
    last = sample(linear, (0.5, t, m, s), "dpmpp-2m")
    x = 0.5 * x + 0.5 * (1.5 * at(t) - 0.5 * at(m))
    torch.testing.assert_close(last, torch.full_like(last, at(0.5)))  # D at the lowest level
    seen = []
    keep = lambda x, sigma, label: seen.append(x) or linear(x, sigma, label)
    sample(keep, (0.5, t, m, s), "dpmpp-2m")
    torch.testing.assert_close(seen[-1], x)


@pytest.mark.parametrize("name", [name for name in ODE if samplers.get(name).order > 1])
def test_more_order_is_less_error_at_the_same_number_of_evaluations(name):
    """Against Euler, at about 64 evaluations, from 80 to 0.002."""
    probe = samplers.parse({"name": name, "sigmas": grid(2)})
    (euler,) = errors_of({"name": "euler"}, (63,), low=0.002)
    (error,) = errors_of({"name": name}, (63 // probe.nfe_step,), low=0.002)
    assert error < euler / 2


def test_dpmpp_2m_is_exact_on_any_grid_where_the_denoiser_is_linear_in_log_sigma():
    """D = a + b lambda, lambda = -ln sigma: the second-order step integrates it exactly but for the first one.

    On a fine even grid the ratio of neighbouring steps is 1, so only an uneven one tells it from its inverse.
    """
    sigmas = (0.2, 0.9, 1.3, 40.0)
    a, b = 0.3, 0.7
    noise = SampleNoise(range(3), (1, 2, 2))
    start = 40.0 * noise.draw()
    linear = lambda x, sigma, label: (a - b * sigma.log()).reshape(-1, 1, 1, 1) * torch.ones_like(x)
    x = samplers.parse({"name": "dpmpp-2m", "sigmas": sigmas}).sample(linear, SampleNoise(range(3), (1, 2, 2)))
    # by hand: x' = (s'/s) x + (1 - s'/s) D~ with D~ = D + (D - D_before) h / (2 h_before)
    d = [a - b * math.log(s) for s in sigmas]
    expected = (1.3 / 40) * start + (1 - 1.3 / 40) * d[3]
    for i in (2, 1):
        h, before = math.log(sigmas[i] / sigmas[i - 1]), math.log(sigmas[i + 1] / sigmas[i])
        ratio = sigmas[i - 1] / sigmas[i]
        expected = ratio * expected + (1 - ratio) * (d[i] + (d[i] - d[i + 1]) * h / (2 * before))
    torch.testing.assert_close(x, torch.full_like(x, d[0]))
    seen = []
    probe = lambda x, sigma, label: seen.append(x) or linear(x, sigma, label)
    samplers.parse({"name": "dpmpp-2m", "sigmas": sigmas}).sample(probe, SampleNoise(range(3), (1, 2, 2)))
    torch.testing.assert_close(seen[-1], expected)
