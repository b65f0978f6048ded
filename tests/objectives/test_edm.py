"""Denoising score matching: its minimum and its value there are known for Gaussian data."""

import pytest
import torch
from gaussian_truth import Calls, Gaussian
from pydantic import ValidationError

from cmray.objectives import ObjectiveContext, Roles, objectives

DATA = Gaussian()
X0 = DATA.draw(20_000, 1, 2, 2)
CONTEXT = ObjectiveContext(
    sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=DATA.std, steps=10, device=torch.device("cpu")
)


def loss(denoise, x0=X0, **options):
    objective = objectives.parse({"name": "edm", **options}).build(CONTEXT)
    return objective.loss(Roles(denoise), x0, None, 0, torch.Generator().manual_seed(0))


def test_the_exact_denoiser_has_loss_one_at_every_noise_level():
    """Posterior variance std^2 sigma^2/(std^2 + sigma^2) times lambda(sigma) is 1 when sigma_data = std."""
    out = loss(DATA.denoise)
    order = out.sigma.argsort()
    for part in out.loss[order].chunk(5):
        assert part.mean().item() == pytest.approx(1, abs=5 * (2 / (4 * len(part))) ** 0.5)


@pytest.mark.parametrize(
    "change",
    [lambda d: d + 0.03, lambda d: d - 0.03, lambda d: 1.03 * d, lambda d: 0.97 * d],
    ids=["+", "-", "up", "down"],
)
def test_any_change_of_the_exact_denoiser_costs(change):
    worse = loss(lambda x, sigma, label: change(DATA.denoise(x, sigma)))
    assert worse.loss.mean() > loss(DATA.denoise).loss.mean() + 0.01


def test_noise_levels_are_log_normal_and_the_noise_is_that_of_the_level():
    denoise = Calls(DATA.denoise)
    out = loss(denoise, times={"name": "lognormal", "P_mean": -0.7, "P_std": 1.5})
    assert out.sigma.log().mean().item() == pytest.approx(-0.7, abs=0.06)
    assert out.sigma.log().std().item() == pytest.approx(1.5, abs=0.05)
    ((x, sigma, _),) = denoise.seen
    assert torch.equal(sigma, out.sigma)
    z = (x - X0) / sigma.reshape(-1, 1, 1, 1)
    assert z.std().item() == pytest.approx(1, abs=0.02)


def test_the_loss_is_the_karras_weight_times_the_mean_squared_error():
    out = loss(lambda x, sigma, label: torch.zeros_like(x), x0=X0[:40])
    weight = (out.sigma**2 + 0.5**2) / (0.5 * out.sigma) ** 2
    torch.testing.assert_close(out.loss, weight * X0[:40].square().mean((1, 2, 3)))


def test_it_logs_no_schedule_and_needs_no_target():
    objective = objectives.parse("edm").build(CONTEXT)
    assert objective.schedule(3) == {}
    assert objective.target_mu(3) == 0
    with pytest.raises(ValidationError, match="P_std"):
        objectives.parse({"name": "edm", "times": {"name": "lognormal", "P_std": 0}})
