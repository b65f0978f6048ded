"""Samplers that add noise on the way: how much, when, and what they end with."""

import math

import pytest
import torch
from gaussian_truth import Calls, Gaussian
from pydantic import ValidationError

from cmray.core.grids import karras_sigmas
from cmray.core.rng import SampleNoise
from cmray.samplers import samplers
from cmray.samplers.ancestral import split_level
from cmray.samplers.predictor_corrector import norm

DATA = Gaussian()
SHAPE = (1, 4, 4)

STOCHASTIC = [
    {"name": "ancestral"},
    {"name": "ddim", "eta": 0.5},
    {"name": "ddim", "eta": 1.0},
    {"name": "edm-heun", "S_churn": 40},
    {"name": "edm-heun", "S_churn": 80, "S_min": 0.05, "S_max": 50},
    {"name": "predictor-corrector", "corrector_steps": 0},
    {"name": "predictor-corrector", "snr": 0.05},
]
by_spec = pytest.mark.parametrize("spec", STOCHASTIC, ids=lambda spec: " ".join(map(str, spec.values())))


def grid(n, low=0.002, high=80.0):
    return tuple(karras_sigmas(n, low, high).tolist())


class Counted(SampleNoise):
    draws = 0

    def draw(self):
        self.draws += 1
        return super().draw()


@by_spec
def test_samples_have_the_mean_and_deviation_of_the_data_as_steps_grow(spec):
    sampler = samplers.parse({**spec, "sigmas": grid(400)})
    assert not sampler.is_deterministic
    x = sampler.sample(DATA.denoise, SampleNoise(range(200), (1, 16, 16)))
    assert x.mean().item() == pytest.approx(DATA.mean, abs=0.012)
    assert x.std().item() == pytest.approx(DATA.std, abs=0.012)


@by_spec
def test_noise_is_drawn_on_the_way(spec):
    noise = Counted(range(3), SHAPE)
    samplers.parse({**spec, "sigmas": grid(6)}).sample(DATA.denoise, noise)
    assert noise.draws > 2


@pytest.mark.parametrize("name", samplers.names())
def test_what_says_it_is_deterministic_draws_once(name):
    looked_at = 0
    for n in (1, 2, 6):
        try:
            sampler = samplers.parse({"name": name, "sigmas": grid(n) if n > 1 else (80.0,)})
        except ValidationError:
            continue
        looked_at += 1
        noise = Counted(range(3), SHAPE)
        sampler.sample(DATA.denoise, noise)
        if sampler.is_deterministic:
            assert noise.draws == 1
        elif n > 1:
            assert noise.draws > 1
    if name in ("one-step", "multistep"):
        assert samplers.parse({"name": name, "sigmas": (80.0,)}).is_deterministic
    assert looked_at == {"one-step": 1, "progressive-distillation": 2}.get(name, 3)


def test_the_corrector_leaves_the_variance_that_its_step_size_implies():
    """Langevin steps of e = 2 snr^2 v settle where v' = (1 - e/v)^2 v' + 2 e, so v' = v / (1 - snr^2)."""
    snr = 0.3
    sampler = samplers.parse({"name": "predictor-corrector", "snr": snr, "corrector_steps": 3, "sigmas": grid(120)})
    x = sampler.sample(DATA.denoise, SampleNoise(range(200), (1, 16, 16)))
    assert x.std().item() == pytest.approx(DATA.std / math.sqrt(1 - snr**2), rel=0.015)


def test_the_norms_of_the_corrector_are_rounded_once():
    """So they are the same in any batch: sums of float32 would depend on how they are split."""
    x = SampleNoise(range(8), (3, 32, 32)).draw()
    exact = [math.sqrt(math.fsum(value**2 for value in row)) for row in x.flatten(1).double().tolist()]
    assert torch.equal(norm(x).flatten(), torch.tensor(exact))


def test_predictor_corrector_is_the_two_formulas_draw_by_draw():
    high, low, snr = 3.0, 1.0, 0.2
    sampler = samplers.parse({"name": "predictor-corrector", "snr": snr, "sigmas": (low, high)})
    x = sampler.sample(DATA.denoise, SampleNoise(range(4), SHAPE))
    noise = SampleNoise(range(4), SHAPE)
    expected = high * noise.draw().double()
    score = lambda x, s: -(x - DATA.mean) / (DATA.std**2 + s**2)
    norm = lambda v: v.double().flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    for sigma in (high, low):
        z, s = noise.draw(), score(expected, sigma)
        e = 2 * (snr * norm(z) / norm(s)) ** 2
        expected = expected + e * s + (2 * e).sqrt() * z
        if sigma == high:
            g2 = high**2 - low**2
            expected = expected + g2 * score(expected, high) + g2**0.5 * noise.draw()
    expected = expected + low**2 * score(expected, low)
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-5)


def test_ancestral_is_ddim_with_all_its_noise():
    ancestral = samplers.parse({"name": "ancestral", "sigmas": grid(8)})
    ddim = samplers.parse({"name": "ddim", "eta": 1, "sigmas": grid(8)})
    ends = [s.sample(DATA.denoise, SampleNoise(range(4), SHAPE)) for s in (ancestral, ddim)]
    assert torch.equal(*ends)


@pytest.mark.parametrize(("high", "low"), [(80.0, 50.0), (1.0, 0.1), (0.003, 0.002)])
def test_split_levels_are_those_of_ddpm_and_ddim(high, low):
    alpha = lambda sigma: 1 / (1 + sigma**2)  # alpha-bar; the noisy image is x sqrt(alpha-bar)
    for eta in (0.3, 1.0):
        down, up = split_level(high, low, eta)
        eq_16 = eta * math.sqrt((1 - alpha(low)) / (1 - alpha(high)) * (1 - alpha(high) / alpha(low)))
        assert up == pytest.approx(eq_16 / math.sqrt(alpha(low)), rel=1e-9)
        assert math.hypot(up, down) == pytest.approx(low, rel=1e-12)
    beta_tilde = (1 - alpha(low)) / (1 - alpha(high)) * (1 - alpha(high) / alpha(low))
    assert up**2 == pytest.approx(beta_tilde / alpha(low), rel=1e-9)
    assert split_level(high, 0.0, 1.0) == (0.0, 0.0)


def test_churn_is_algorithm_2():
    options = {"S_churn": 1.2, "S_min": 0.5, "S_max": 20.0, "S_noise": 1.5}
    sampler = samplers.parse({"name": "edm-heun", "sigmas": (0.1, 1.0, 5.0, 40.0), **options})
    denoise = Calls(DATA.denoise)
    noise = Counted(range(4), SHAPE)
    sampler.sample(denoise, noise)
    assert noise.draws == 3, "at 5 and 1, and the start"
    levels = [s[0].item() for _, s, _ in denoise.seen]
    gamma = 1.2 / 4
    assert levels == pytest.approx([40, 5, 5 * (1 + gamma), 1, 1 + gamma, 0.1, 0.1])
    draws = SampleNoise(range(4), SHAPE)
    x = 40 * draws.draw()
    torch.testing.assert_close(denoise.seen[0][0], x)
    slope = lambda x, s: (x - DATA.denoise(x, torch.full((4,), s))) / s
    d = slope(x, 40.0)
    x = x + (5 - 40) * (d + slope(x + (5 - 40) * d, 5.0)) / 2
    x = x + math.sqrt((5 * (1 + gamma)) ** 2 - 25) * 1.5 * draws.draw()
    torch.testing.assert_close(denoise.seen[2][0], x, rtol=1e-5, atol=1e-5)


def test_the_ends_of_the_churned_range_are_churned_and_nothing_beyond():
    sampler = samplers.parse({"name": "edm-heun", "S_churn": 0.5, "S_min": 0.5, "S_max": 20, "sigmas": (0.5, 20.0)})
    assert [sampler.gamma(t) for t in (0.499, 0.5, 20.0, 20.1)] == [0, 0.25, 0.25, 0]


def test_churn_raises_a_level_by_no_more_than_the_square_root_of_2():
    for levels in (1, 3, 50):
        sampler = samplers.parse(
            {"name": "edm-heun", "S_churn": 1e6, "sigmas": (80.0,) if levels == 1 else grid(levels)}
        )
        assert sampler.gamma(80.0) == pytest.approx(math.sqrt(2) - 1)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "edm-heun", "S_min": 0.1}, "S_churn is 0"),
        ({"name": "edm-heun", "S_noise": 1.003}, "S_churn is 0"),
        ({"name": "edm-heun", "S_churn": 1, "S_min": 2, "S_max": 1}, "S_max 1.0 is below S_min 2.0"),
        ({"name": "edm-heun", "S_churn": -1}, "S_churn"),
        ({"name": "ddim", "eta": 1.5}, "eta"),
        ({"name": "predictor-corrector", "snr": 0}, "snr"),
        ({"name": "predictor-corrector", "corrector_steps": -1}, "corrector_steps"),
        ({"name": "ancestral", "eta": 1}, "unknown key"),
    ],
)
def test_options_that_cannot_be_are_refused(spec, words):
    with pytest.raises(ValidationError, match=words):
        samplers.parse({**spec, "sigmas": (1.0, 2.0)})


@by_spec
def test_a_sampler_comes_back_from_its_own_dump(spec):
    """As it travels to the processes that evaluate."""
    sampler = samplers.parse({**spec, "sigmas": grid(3)})
    assert samplers.parse(sampler.model_dump(mode="json")) == sampler


def test_titles_tell_options_apart_and_leave_defaults_out():
    title = lambda **spec: samplers.parse({"sigmas": (1.0, 2.0), **spec}).title
    assert title(name="edm-heun") == title(name="edm-heun", S_churn=0) == "edm-heun"
    assert title(name="edm-heun", S_churn=40) == "edm-heun S_churn=40.0"
    assert title(name="ddim", eta=0.5) == "ddim eta=0.5"
    assert (
        title(name="predictor-corrector", snr=0.1, corrector_steps=2) == "predictor-corrector snr=0.1 corrector_steps=2"
    )
    assert title(name="multistep", sigma_min=0.1) == "multistep", "the model's own, not a choice"


@pytest.mark.parametrize("name", samplers.names())
def test_levels_and_evaluations_are_inverse(name):
    probe = samplers.parse({"name": name, "sigmas": (80.0,) if name == "one-step" else grid(2)})
    counts = {nfe: probe.num_levels(nfe) for nfe in range(-2, 40)}
    assert not any(counts[nfe] for nfe in (-2, -1, 0))
    if name != "one-step":
        for nfe, count in counts.items():
            if count:
                made = samplers.parse({"name": name, "sigmas": grid(count) if count > 1 else (80.0,)})
                assert made.nfe == nfe
