"""Scalings, weights, grids and schedules against the reference implementation (openai/consistency_models)."""

import numpy as np
import pytest
import torch

from cmray.core.curricula import AdaptiveMu, AdaptiveNumSigmas, FixedMu, FixedNumSigmas, HalvingNumSigmas
from cmray.core.grids import karras_sigmas
from cmray.core.precond import BoundaryPrecond, Denoiser, EDMPrecond, c_in, c_noise, expand
from cmray.core.weights import weight

pytestmark = pytest.mark.golden

PRECONDS = {"edm": EDMPrecond(0.5), "cm": BoundaryPrecond(0.5, 0.002)}


def close(actual, expected, rtol=1e-5, atol=1e-9):
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", PRECONDS)
def test_scalings(golden, kind):
    numbers, precond = golden("a_scalings.npz"), PRECONDS[kind]
    sigma = torch.from_numpy(numbers["sigma"])
    close(precond.c_skip(sigma), numbers[f"{kind}_c_skip"])
    close(precond.c_out(sigma), numbers[f"{kind}_c_out"])
    close(c_in(sigma, 0.5), numbers[f"{kind}_c_in"])


@pytest.mark.parametrize("kind", PRECONDS)
def test_the_denoiser_with_a_network_of_ones(golden, kind):
    numbers = golden("a_scalings.npz")
    x, sigma = torch.from_numpy(numbers["x"]), torch.from_numpy(numbers["sigma"])
    seen = []
    ones = lambda scaled, c, label: seen.append((scaled, c)) or torch.ones_like(x)
    close(Denoiser(ones, PRECONDS[kind])(x, sigma), numbers[f"denoised_{kind}_F1"], atol=1e-7)
    close(seen[0][0], numbers["cin_x"])
    close(1000 * seen[0][1], numbers["rescaled_t"])
    torch.testing.assert_close(c_noise(sigma), seen[0][1])
    assert expand(sigma, x).shape == (52, 1, 1, 1)


@pytest.mark.parametrize("name", ["snr", "snr+1", "karras", "truncated-snr", "uniform"])
def test_weights(golden, name):
    numbers = golden("a_scalings.npz")
    close(weight(name, torch.from_numpy(numbers["sigma"]), 0.5), numbers[f"w_{name}"])


@pytest.mark.parametrize("n", [2, 18, 40])
def test_karras_grids(golden, n):
    numbers = golden("b_sigmas.npz")
    sigmas = karras_sigmas(n, 0.002, 80.0)
    # the reference descends, appends 0, and raises float32 numbers to the 7th power
    reference = numbers[f"karras_{n}"][:-1][::-1].astype(np.float64)
    np.testing.assert_allclose(sigmas, reference, rtol=2e-6)
    np.testing.assert_allclose(sigmas[1:][::-1], numbers[f"train_t_{n}"], rtol=2e-6)
    np.testing.assert_allclose(sigmas[:-1][::-1], numbers[f"train_t2_{n}"], rtol=2e-6)


def test_progressive_distillation_grids_are_karras_grids_of_twice_the_intervals(golden):
    numbers = golden("b_sigmas.npz")
    for steps in (2, 4, 40):
        sigmas = karras_sigmas(2 * steps + 1, 0.002, 80.0)[::-1]
        for key, points in (("t", sigmas[:-1:2]), ("t2", sigmas[1::2]), ("t3", sigmas[2::2])):
            np.testing.assert_allclose(points, numbers[f"progdist_{key}_{steps}"], rtol=2e-6)


def test_stages_of_progressive_distillation(golden):
    case = golden("c_schedules.json")["progdist_16_small"]
    args = case["args"]
    schedule = HalvingNumSigmas(start=args["start_scales"], stage_steps=args["distill_steps_per_iter"])
    rows = case["runs_step_N_mu"]
    ends = [row[0] - 1 for row in rows[1:]] + [args["total_steps"]]
    for (first, steps, _), last in zip(rows, ends, strict=True):
        for step in (first, last):
            assert schedule.num_sigmas_at(step, args["total_steps"]) - 1 == steps, f"sampling steps at step {step}"


@pytest.mark.parametrize("name", ["ct_imagenet64", "ct_small", "cd_official"])
def test_schedules_of_n_and_mu(golden, name):
    case = golden("c_schedules.json")[name]
    args, steps = case["args"], case["args"]["total_steps"]
    if args["scale_mode"] == "progressive":
        ns = AdaptiveNumSigmas(s0=args["start_scales"], s1=args["end_scales"])
        mus, s0 = AdaptiveMu(mu0=args["start_ema"], divisor="reference"), args["start_scales"]
    else:
        ns, mus, s0 = FixedNumSigmas(num_sigmas=args["start_scales"]), FixedMu(mu=args["start_ema"]), None
    rows = [row for row in case["runs_step_N_mu"] if len(row) == 3]  # longer rows lie beyond the run
    ends = [row[0] - 1 for row in rows[1:]] + [steps]
    for (first, n, mu), last in zip(rows, ends, strict=True):
        for step in (first, (first + last) // 2, last):
            assert ns.num_sigmas_at(step, steps) == n, f"N at step {step}"
            assert mus.mu_at(n, s0) == pytest.approx(mu, abs=1e-12), f"mu at step {step}"
