"""Every registered solver keeps what it declares: its order of convergence and its denoiser calls."""

import itertools

import pytest
import torch
from gaussian_truth import Calls, Gaussian, measured_order

from cmray.core.grids import karras_sigmas
from cmray.solvers import SolverConfig, solvers
from cmray.solvers.base import slope

DATA = Gaussian()
LEVELS = (16, 32, 64, 128)  # intervals


def start(batch=8):
    g = torch.Generator().manual_seed(0)
    return torch.randn((batch, 1, 2, 2), generator=g, dtype=torch.float64)


def integrate(solver, denoise, x, begin, end, intervals):
    sigmas = karras_sigmas(intervals + 1, end, begin)[::-1]
    for here, there in itertools.pairwise(sigmas):
        x = solver.step(denoise, x, *(torch.full((len(x),), s, dtype=torch.float64) for s in (here, there)), None)
    return x


@pytest.mark.parametrize("name", solvers.names())
def test_order_on_gaussian_data_is_the_declared_one(name):
    solver, x = solvers.parse(name), 10 * start()
    exact = DATA.flow(x, 10.0, 0.05)
    errors = [(integrate(solver, DATA.denoise, x, 10.0, 0.05, n) - exact).abs().max().item() for n in LEVELS]
    assert errors[-1] < 0.05, f"{name} does not reach the exact solution: {errors}"
    assert measured_order(errors) == pytest.approx(solver.order, abs=0.15), f"{name}: errors {errors} at {LEVELS}"


@pytest.mark.parametrize("name", solvers.names())
def test_order_on_a_nonlinear_ode_is_the_declared_one(name):
    """Data at +1 and -1: D(x, sigma) = tanh(x/sigma^2). Successive refinements stand in for the exact solution."""
    solver, x = solvers.parse(name), 2 * start()
    two_points = lambda x, sigma, label: torch.tanh(x / sigma.reshape(-1, 1, 1, 1) ** 2)
    ends = [integrate(solver, two_points, x, 2.0, 0.6, n) for n in LEVELS]
    errors = [(a - b).abs().max().item() for a, b in itertools.pairwise(ends)]
    assert measured_order(errors) == pytest.approx(solver.order, abs=0.2), f"{name}: differences {errors}"


@pytest.mark.parametrize("name", solvers.names())
def test_nfe_of_a_step_is_the_declared_one_and_every_call_gets_the_label(name):
    solver, denoise, label = solvers.parse(name), Calls(DATA.denoise), torch.arange(8)
    x = start().float()
    out = solver.step(denoise, x, torch.full((8,), 5.0), torch.full((8,), 4.0), label)
    assert len(denoise) == solver.nfe
    assert all(seen is label for _, _, seen in denoise.seen)
    assert (out.shape, out.dtype) == (x.shape, torch.float32)
    assert all(((sigma >= 4) & (sigma <= 5)).all() for _, sigma, _ in denoise.seen)


@pytest.mark.parametrize("name", solvers.names())
def test_each_sample_has_its_own_noise_levels(name):
    solver, x = solvers.parse(name), start(3)
    begin, end = torch.tensor([80.0, 5.0, 0.3]).double(), torch.tensor([60.0, 2.0, 0.002]).double()
    together = solver.step(DATA.denoise, x, begin, end, None)
    for i in range(3):
        alone = solver.step(DATA.denoise, x[i : i + 1], begin[i : i + 1], end[i : i + 1], None)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", solvers.names())
def test_a_step_of_no_length_changes_nothing_and_the_input_is_kept(name):
    x = start()
    before, level = x.clone(), torch.full((8,), 3.0, dtype=torch.float64)
    assert torch.equal(solvers.parse(name).step(DATA.denoise, x, level, level, None), before)
    solvers.parse(name).step(DATA.denoise, x, level, level / 2, None)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", solvers.names())
def test_it_is_exact_where_the_slope_is_constant(name):
    """One data point c: D = c, and the trajectory is the line from x to c."""
    x, c = start(), 0.7
    begin, end = torch.full((8,), 4.0, dtype=torch.float64), torch.full((8,), 1.0, dtype=torch.float64)
    out = solvers.parse(name).step(lambda x, sigma, label: torch.full_like(x, c), x, begin, end, None)
    torch.testing.assert_close(out, c + (x - c) / 4)


def test_slope_is_that_of_the_exact_flow():
    x, sigma = start(), torch.full((8,), 1.3, dtype=torch.float64)
    h = 1e-5
    numeric = (DATA.flow(x, sigma, sigma + h) - DATA.flow(x, sigma, sigma - h)) / (2 * h)
    torch.testing.assert_close(slope(DATA.denoise, x, sigma, None), numeric, rtol=1e-8, atol=1e-9)


def test_euler_to_zero_is_the_denoiser():
    x, sigma = start(), torch.full((8,), 2.0, dtype=torch.float64)
    out = solvers.parse("euler").step(DATA.denoise, x, sigma, 0 * sigma, None)
    torch.testing.assert_close(out, DATA.denoise(x, sigma))


def test_the_midpoint_of_dpm_solver_2_is_the_geometric_mean():
    denoise = Calls(DATA.denoise)
    solvers.parse("dpm-solver-2").step(denoise, start().float(), torch.full((8,), 8.0), torch.full((8,), 2.0), None)
    assert [sigma[0].item() for _, sigma, _ in denoise.seen] == [8.0, 4.0]


def test_the_registry_holds_the_solvers_of_the_paper_and_the_base_is_no_solver():
    assert {"euler": 1, "heun": 2, "dpm-solver-2": 2}.items() <= {
        n: solvers.get(n).order for n in solvers.names()
    }.items()
    with pytest.raises(TypeError, match="SolverConfig does not define step"):
        SolverConfig().step(DATA.denoise, start(), start(), start(), None)
