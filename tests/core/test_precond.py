"""Preconditioning: the boundary condition holds bit for bit, and EDM's scalings do what they were derived for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmray.core.precond import (
    BoundaryPrecond,
    Denoiser,
    EDMPrecond,
    c_in,
    c_noise,
    from_pixels,
    make_precond,
    to_pixels,
)

SIGMAS = torch.logspace(-3, 2, 40, dtype=torch.float64)
SIGMA_DATAS = st.floats(0.05, 2)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(sigma_min=st.floats(1e-4, 0.5), sigma_data=SIGMA_DATAS, seed=st.integers(0, 1000))
def test_a_consistency_function_leaves_sigma_min_alone_bit_for_bit(sigma_min, sigma_data, seed):
    x = noise(3, 2, 4, 4, seed=seed)
    any_net = lambda x, c_noise, label: 100 * torch.sin(37 * x + seed) + c_noise[:, None, None, None]
    f = Denoiser(any_net, make_precond("boundary", sigma_data, sigma_min))
    assert torch.equal(f(x, torch.full((3,), sigma_min)), x)


@given(sigma_data=SIGMA_DATAS)
def test_the_boundary_scalings_are_those_of_the_paper(sigma_data):
    precond = BoundaryPrecond(sigma_data, sigma_min=0.01)
    for sigma in (0.01, 0.02, 0.5, 7.0, 80.0):
        at = torch.tensor([sigma], dtype=torch.float64)
        skip = sigma_data**2 / ((sigma - 0.01) ** 2 + sigma_data**2)
        out = sigma_data * (sigma - 0.01) / math.sqrt(sigma_data**2 + sigma**2)
        assert precond.c_skip(at).item() == pytest.approx(skip, rel=1e-12)
        assert precond.c_out(at).item() == pytest.approx(out, rel=1e-12, abs=1e-15)


@given(sigma_data=SIGMA_DATAS)
def test_edm_scalings_give_unit_variance_and_the_smallest_amplification(sigma_data):
    """EDM, App. B.6: var(c_in x) = 1, var of the effective target = 1, and c_skip minimises c_out."""
    precond = EDMPrecond(sigma_data)
    skip, out, inp = precond.c_skip(SIGMAS), precond.c_out(SIGMAS), c_in(SIGMAS, sigma_data)
    one = torch.ones_like(SIGMAS)
    torch.testing.assert_close(inp**2 * (SIGMAS**2 + sigma_data**2), one)
    # target = (x0 - c_skip (x0 + sigma z)) / c_out
    variance = lambda skip: (1 - skip) ** 2 * sigma_data**2 + skip**2 * SIGMAS**2
    torch.testing.assert_close(variance(skip) / out**2, one)
    assert (variance(skip + 1e-3) > variance(skip)).all()
    assert (variance(skip - 1e-3) > variance(skip)).all()


@pytest.mark.parametrize("sigma", [0.05, 0.5, 8.0])
def test_unit_variance_of_the_networks_input_and_target_measured_on_data(sigma):
    sigma_data = 0.4
    x0, z = sigma_data * noise(200_000, 1, 1, 1, seed=1), noise(200_000, 1, 1, 1, seed=2)
    x, at = x0 + sigma * z, torch.tensor([sigma])
    seen = []
    Denoiser(lambda x, c, label: seen.append(x) or x, EDMPrecond(sigma_data))(x, at.expand(len(x)))
    precond = EDMPrecond(sigma_data)
    target = (x0 - precond.c_skip(at) * x) / precond.c_out(at)
    assert seen[0].var().item() == pytest.approx(1, abs=0.02)
    assert target.var().item() == pytest.approx(1, abs=0.02)


def test_the_denoiser_hands_the_network_scaled_input_log_noise_and_the_label():
    seen = {}

    def net(x, c_noise, label):
        seen.update(x=x, c_noise=c_noise, label=label)
        return torch.full_like(x, 2.0)

    x, sigma, label = noise(2, 3, 4, 5), torch.tensor([0.1, 20.0]), torch.tensor([4, 1])
    out = Denoiser(net, EDMPrecond(0.5))(x, sigma, label)
    for i, s in enumerate((0.1, 20.0)):
        torch.testing.assert_close(seen["x"][i], x[i] / math.sqrt(s**2 + 0.25))
        assert seen["c_noise"][i].item() == pytest.approx(math.log(s) / 4, rel=1e-6)
        skip, scale = 0.25 / (s**2 + 0.25), s * 0.5 / math.sqrt(s**2 + 0.25)
        torch.testing.assert_close(out[i], skip * x[i] + 2 * scale)
    assert seen["label"] is label
    assert c_noise(torch.tensor([math.e**4])).item() == pytest.approx(1)


def test_a_half_precision_network_still_gives_float32_from_float32_scalings():
    half = Denoiser(lambda x, c, label: x.to(torch.bfloat16), BoundaryPrecond(0.5, 0.002))
    x = noise(2, 1, 4, 4)
    assert half(x, torch.tensor([1.0, 80.0])).dtype == torch.float32
    assert torch.equal(half(x, torch.full((2,), 0.002)), x)


def test_make_precond_gives_the_one_that_is_named():
    assert make_precond("edm", 0.5, 0.002) == EDMPrecond(0.5)
    assert make_precond("boundary", 0.5, 0.002) == BoundaryPrecond(0.5, 0.002)


def test_pixels_round_trip_and_clip():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(from_pixels(levels)), levels)
    assert from_pixels(levels)[[0, -1]].tolist() == [-1, 1]
    assert to_pixels(torch.tensor([-3.0, -1.0, 0.99 / 127.5, 1.0, 1.7])).tolist() == [0, 0, 128, 255, 255]
    # nearest, not truncated: 0.4 of a level goes down, 0.6 goes up
    assert to_pixels(from_pixels(levels[7:8]) + torch.tensor([0.4, 0.6, -0.4]) / 127.5).tolist() == [7, 8, 7]
