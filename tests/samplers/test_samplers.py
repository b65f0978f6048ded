"""Every registered sampler keeps what it declares; each one's result is known for Gaussian data."""

import math

import pytest
import torch
from gaussian_truth import Calls, Gaussian, measured_order
from pydantic import ValidationError

from cmray.core.grids import karras_sigmas
from cmray.core.precond import BoundaryPrecond, Denoiser, EDMPrecond
from cmray.core.rng import SampleNoise
from cmray.nn import nets
from cmray.samplers import Sampler, samplers

DATA = Gaussian()
SHAPE = (1, 4, 4)


def grid(n, sigma_min=0.002, sigma_max=80.0):
    return tuple(float(s) for s in karras_sigmas(n, sigma_min, sigma_max)) if n > 1 else (sigma_max,)


#: the numbers of levels that a sampler refuses
REFUSED = {"one-step": (2, 3, 6), "progressive-distillation": (1,)}
#: every sampler as it is, and those whose options change what it does
SPECS = [
    *({"name": name} for name in samplers.names()),
    {"name": "ddim", "eta": 1.0},
    {"name": "edm-heun", "S_churn": 40},
    {"name": "edm-heun", "S_churn": 2, "S_min": 0.05, "S_max": 50, "S_noise": 1.007},
    {"name": "predictor-corrector", "corrector_steps": 2},
    {"name": "predictor-corrector", "corrector_steps": 0},
]
by_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: " ".join(map(str, spec.values())))


def make_all(spec, sigma_max=80.0):
    """The sampler at each number of noise levels that it takes."""
    made = []
    for n in (1, 2, 3, 6):
        try:
            made.append(samplers.parse({**spec, "sigmas": grid(n, sigma_max=sigma_max)}))
        except ValidationError:
            assert n in REFUSED.get(spec["name"], ()), f"{spec} refuses {n} levels"
    return made


def levels_asked(sampler):
    """The levels whose denoiser every sample needs: where progressive distillation ends, none is."""
    return sampler.sigmas[1:] if sampler.name == "progressive-distillation" else sampler.sigmas


def random_network(name):
    """What the sampler asks, a denoiser or a consistency function: class-conditional, weights that are not zero."""
    torch.manual_seed(0)
    net = nets.parse({"name": "mlp", "width": 32, "depth": 2}).build(SHAPE, num_classes=3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return Denoiser(net, BoundaryPrecond(0.5, 0.002) if samplers.get(name).of_consistency else EDMPrecond(0.5))


@pytest.mark.parametrize("name", samplers.names())
def test_nfe_is_the_number_of_calls_and_each_gets_the_label_and_a_falling_level(name):
    label = torch.arange(5) % 3
    for sampler in make_all({"name": name}):
        denoise = Calls(DATA.denoise)
        out = sampler.sample(denoise, SampleNoise(range(5), SHAPE), label)
        assert len(denoise) == sampler.nfe, f"{name} at {len(sampler.sigmas)} levels"
        assert all(seen is label for _, _, seen in denoise.seen)
        levels = [sigma for _, sigma, _ in denoise.seen]
        assert all(s.shape == (5,) for s in levels)
        assert all(len(s.unique()) == 1 for s in levels)
        values = [s[0].item() for s in levels]
        assert values[0] == pytest.approx(sampler.sigmas[-1])
        assert values == sorted(values, reverse=True)
        for sigma in levels_asked(sampler):
            assert any(v == pytest.approx(sigma, rel=1e-6) for v in values), f"{name} never visits {sigma}"
        assert (out.shape, out.dtype, out.requires_grad) == ((5, *SHAPE), torch.float32, False)


@pytest.mark.parametrize("name", samplers.names())
def test_sampling_starts_from_sigma_max_times_the_first_draw(name):
    for sampler in make_all({"name": name}):
        denoise = Calls(DATA.denoise)
        sampler.sample(denoise, SampleNoise([3, 4], SHAPE))
        torch.testing.assert_close(denoise.seen[0][0], sampler.sigmas[-1] * SampleNoise([3, 4], SHAPE).draw())


@by_spec
def test_the_same_seeds_give_the_same_bits_and_others_do_not(spec):
    denoise, label = random_network(spec["name"]), torch.arange(6) % 3
    for sampler in make_all(spec):
        torch.manual_seed(1)
        first = sampler.sample(denoise, SampleNoise(range(6), SHAPE), label)
        torch.manual_seed(2)
        assert torch.equal(sampler.sample(denoise, SampleNoise(range(6), SHAPE), label), first)
        others = sampler.sample(denoise, SampleNoise(range(6, 12), SHAPE), label)
        assert ((others - first).flatten(1).abs().max(1).values > 1e-3).all()


@by_spec
def test_a_sample_does_not_depend_on_its_batch(spec):
    denoise, label, seeds = random_network(spec["name"]), torch.arange(12) % 3, list(range(100, 112))
    for sampler in make_all(spec, sigma_max=2.0):  # at 80, float32 rounding of x alone is 8e-6
        whole = sampler.sample(denoise, SampleNoise(seeds, SHAPE), label)
        parts = [slice(0, 1), slice(1, 6), slice(6, 12)]
        split = [sampler.sample(denoise, SampleNoise(seeds[part], SHAPE), label[part]) for part in parts]
        torch.testing.assert_close(torch.cat(split), whole, rtol=0, atol=5e-6)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        permuted = sampler.sample(denoise, SampleNoise([seeds[i] for i in order], SHAPE), label[order])
        assert torch.equal(permuted, whole[order]), "the same batch shape must give the same bits in any order"


@by_spec
def test_without_network_rounding_the_batch_size_does_not_move_a_bit(spec):
    for sampler in make_all(spec):
        whole = sampler.sample(DATA.denoise, SampleNoise(range(7), SHAPE))
        for i in range(7):
            assert torch.equal(sampler.sample(DATA.denoise, SampleNoise([i], SHAPE))[0], whole[i])


@by_spec
def test_a_sampler_that_clips_hears_every_answer_in_range(spec):
    wild = lambda x, sigma, label: 3 * torch.sin(5 * x)
    for sampler in make_all(spec):
        ends = [
            one.sample(said, SampleNoise(range(4), SHAPE))
            for one, said in (
                (sampler.model_copy(update={"clip_denoised": True}), wild),
                (sampler, lambda *at: wild(*at).clamp(-1, 1)),
                (sampler, wild),
            )
        ]
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[1], ends[2])


@pytest.mark.parametrize("name", samplers.names())
@pytest.mark.parametrize("sigmas", [(), (0.0,), (-1.0,), (80.0, 0.5), (1.0, 1.0)])
def test_levels_that_are_not_positive_and_ascending_are_refused(name, sigmas):
    with pytest.raises(ValidationError, match="sigmas"):
        samplers.parse({"name": name, "sigmas": sigmas})


def test_times_are_the_levels_in_visiting_order():
    assert samplers.parse({"name": "multistep", "sigmas": (0.5, 3.0, 80.0)}).times == [80.0, 3.0, 0.5]


def test_edm_heun_converges_to_the_exact_flow_at_order_2():
    noise = SampleNoise(range(16), SHAPE)
    exact = DATA.flow(80 * noise.draw(), 80.0, 0.0)
    errors = []
    for intervals in (40, 80, 160):
        sampler = samplers.parse({"name": "edm-heun", "sigmas": grid(intervals + 1)})
        errors.append((sampler.sample(DATA.denoise, SampleNoise(range(16), SHAPE)) - exact).abs().max().item())
    assert errors[-1] < 1e-3
    assert measured_order(errors) == pytest.approx(2, abs=0.15), errors


def test_edm_heun_samples_have_the_mean_and_deviation_of_the_data():
    sampler = samplers.parse({"name": "edm-heun", "sigmas": grid(150)})
    x = sampler.sample(DATA.denoise, SampleNoise(range(200), (1, 16, 16)))
    assert x.mean().item() == pytest.approx(DATA.mean, abs=0.012)
    assert x.std().item() == pytest.approx(DATA.std, abs=0.01)


def test_one_step_of_the_exact_consistency_function_is_the_exact_flow():
    f = DATA.consistency(0.002)
    x = samplers.parse({"name": "one-step", "sigmas": (80.0,)}).sample(f, SampleNoise(range(8), SHAPE))
    assert torch.equal(x, DATA.flow(80 * SampleNoise(range(8), SHAPE).draw(), 80.0, 0.002))


def test_one_step_of_a_denoiser_is_one_euler_step_to_zero():
    noise = SampleNoise(range(8), SHAPE).draw()
    x = samplers.parse({"name": "one-step", "sigmas": (80.0,)}).sample(DATA.denoise, SampleNoise(range(8), SHAPE))
    torch.testing.assert_close(x, DATA.denoise(80 * noise, torch.full((8,), 80.0)))


@pytest.mark.parametrize("sigmas", [(80.0,), (0.8, 80.0), (0.4, 2.0, 10.0, 80.0)])
def test_multistep_is_algorithm_1_draw_by_draw(sigmas):
    eps = 0.3
    sampler = samplers.parse({"name": "multistep", "sigmas": sigmas, "sigma_min": eps})
    x = sampler.sample(DATA.consistency(eps), SampleNoise(range(4), SHAPE))
    noise = SampleNoise(range(4), SHAPE)
    expected = DATA.flow(sigmas[-1] * noise.draw().double(), sigmas[-1], eps)
    for tau in reversed(sigmas[:-1]):
        expected = DATA.flow(expected + (tau**2 - eps**2) ** 0.5 * noise.draw(), tau, eps)
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_multistep_with_the_exact_consistency_function_samples_the_data_at_sigma_min(steps):
    """f leaves noise eps: the samples are N(mean, std^2 + eps^2). A large eps makes a wrong amount of noise visible."""
    eps, data = 0.3, Gaussian(mean=0.4)
    sigmas = grid(steps + 1, 0.5, 80.0)[1:]
    sampler = samplers.parse({"name": "multistep", "sigmas": sigmas, "sigma_min": eps})
    x = sampler.sample(data.consistency(eps), SampleNoise(range(300), (1, 16, 16)))
    n, variance = x.numel(), data.std**2 + eps**2
    # sampling starts at mean 0, not 0.4: each step keeps ratio of that miss
    miss = -data.mean * math.prod(math.sqrt(variance / (data.std**2 + s**2)) for s in sigmas)
    assert x.mean().item() == pytest.approx(data.mean + miss, abs=5 * math.sqrt(variance / n))
    first = 80.0**2 / (80.0**2 + data.std**2)  # ... and at variance 80^2 instead of 80^2 + std^2
    assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n) + 1 - first)


def test_multistep_noise_differs_from_the_first_draw():
    """With a constant f, what the second call sees is f plus fresh noise."""
    denoise = Calls(lambda x, sigma, label: torch.zeros_like(x))
    samplers.parse({"name": "multistep", "sigmas": (3.0, 80.0)}).sample(denoise, SampleNoise(range(4), SHAPE))
    first, second = (x / s.reshape(-1, 1, 1, 1) for x, s, _ in denoise.seen)
    assert (first - second).abs().mean() > 0.5
    noise = SampleNoise(range(4), SHAPE)
    noise.draw()
    torch.testing.assert_close(second, noise.draw(), rtol=1e-5, atol=1e-6)


def test_multistep_below_sigma_min_and_one_step_of_two_levels_are_refused():
    with pytest.raises(ValidationError, match=r"sigmas starts at 0\.001, below sigma_min 0\.002"):
        samplers.parse({"name": "multistep", "sigmas": (0.001, 80.0)})
    with pytest.raises(ValidationError, match="sigmas"):
        samplers.parse({"name": "one-step", "sigmas": (1.0, 80.0)})


def test_the_base_is_no_sampler():
    with pytest.raises(TypeError, match="Sampler does not define step"):
        Sampler(sigmas=(1.0,)).sample(DATA.denoise, SampleNoise([0], SHAPE))
