"""Random numbers depend on what they are for, never on what was drawn before or beside them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmray.core.rng import SEED_BASE, SampleNoise, derive_seed, numpy_generator, torch_generator

SHAPE = (2, 3, 5)
#: of seeds 0 and 7, and of seeds 0 to 7
KNOWN_NOISE = [0.059911035001277924, 0.015559634193778038, -0.2933390140533447, 1.703830599784851]
KNOWN_LABELS = [743, 50, 353, 486, 380, 442, 388, 220]
PARTS = st.lists(st.integers(-(2**63), 2**64) | st.text(max_size=8), max_size=4).map(tuple)


@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True), data=st.data())
def test_a_sample_gets_the_same_noise_in_any_batch(seeds, data):
    order = data.draw(st.permutations(seeds))
    together, permuted = SampleNoise(seeds, SHAPE), SampleNoise(order, SHAPE)
    first, second = together.draw(), together.draw()
    p_first, p_second = permuted.draw(), permuted.draw()
    for i, seed in enumerate(seeds):
        alone = SampleNoise([seed], SHAPE)
        assert torch.equal(alone.draw()[0], first[i])
        assert torch.equal(alone.draw()[0], second[i])
        assert torch.equal(p_first[order.index(seed)], first[i])
        assert torch.equal(p_second[order.index(seed)], second[i])


def test_draws_and_seeds_differ_and_are_standard_normal():
    noise = SampleNoise(range(40), (3, 32, 32))
    a, b = noise.draw(), noise.draw()
    assert a.dtype == torch.float32
    assert a.shape == (40, 3, 32, 32)
    flat = torch.cat([a, b]).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(80)
    assert correlation.abs().max() < 5.5 / np.sqrt(flat.shape[1])
    assert flat.mean().item() == pytest.approx(0, abs=5 / np.sqrt(flat.numel()))
    assert flat.var().item() == pytest.approx(1, abs=5 * np.sqrt(2 / flat.numel()))
    assert (flat**4).mean().item() == pytest.approx(3, abs=0.1)


def test_known_values_so_that_a_seed_means_the_same_image_for_ever():
    draw = SampleNoise([0, 7], (1, 1, 2)).draw().flatten().tolist()
    assert draw == pytest.approx(KNOWN_NOISE, rel=1e-6)
    assert SampleNoise(range(8), SHAPE).integers(1000).tolist() == KNOWN_LABELS
    assert derive_seed("noise", 3, 0) == 2276711110129865498


def test_labels_are_uniform_from_streams_of_their_own():
    seeds = range(5000)
    noise = SampleNoise(seeds, SHAPE)
    labels = noise.integers(10)
    assert labels.dtype == torch.int64
    counts = torch.bincount(labels, minlength=10)
    assert counts.shape == (10,)
    assert ((counts - 500).abs() < 5 * np.sqrt(500)).all()
    # asking for labels moves no noise, and drawing noise moves no label
    assert torch.equal(noise.draw(), SampleNoise(seeds, SHAPE).draw())
    assert torch.equal(noise.integers(10), labels)
    assert torch.equal(SampleNoise([17], SHAPE).integers(10), labels[17:18])


def test_a_label_says_nothing_of_the_noise():
    """From one stream they would: the lowest byte of a random word decides how large the first normal number is."""
    noise = SampleNoise(range(4000), (1, 1, 1))
    labels, size = noise.integers(256).double(), noise.draw().flatten().abs().double()
    assert abs(torch.corrcoef(torch.stack([labels, size]))[0, 1]) < 5 / np.sqrt(4000)


def test_seeds_of_different_purposes_never_meet():
    bases = sorted(SEED_BASE.values())
    assert len(set(bases)) == len(SEED_BASE) >= 4
    assert bases[0] >= 0
    assert all(b - a >= 10**12 for a, b in itertools.pairwise(bases))  # room for every sample anyone will draw
    assert bases[-1] + 10**12 < 2**63
    draws = SampleNoise(bases, (1, 8, 8)).draw()
    for a, b in itertools.combinations(draws, 2):
        assert not torch.equal(a, b)


@given(a=PARTS, b=PARTS)
def test_derived_seeds_are_63_bit_and_differ_when_their_parts_do(a, b):
    assert 0 <= derive_seed(*a) < 2**63
    assert (derive_seed(*a) == derive_seed(*b)) == (a == b)


def test_parts_do_not_run_into_each_other():
    apart = [("ab", "c"), ("a", "bc"), ("abc",), (1, 23), (12, 3), (123,), ("1", 23), ("123",), (), ("",)]
    assert len({derive_seed(*parts) for parts in apart}) == len(apart)


@pytest.mark.parametrize(
    "make",
    [
        lambda *p: torch.rand(4, generator=torch_generator("cpu", *p)).tolist(),
        lambda *p: numpy_generator(*p).random(4).tolist(),
    ],
)
def test_generators_are_functions_of_their_parts(make):
    torch.manual_seed(1)
    first = make(0, "noise", 5)
    torch.manual_seed(2)
    assert make(0, "noise", 5) == first
    assert make(0, "noise", 6) != first
    assert make(1, "noise", 5) != first
