"""The Karras grid is the paper's formula, with exact ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmray.core.grids import karras_sigmas


@given(
    num_sigmas=st.integers(2, 300),
    sigma_min=st.floats(1e-4, 1),
    ratio=st.floats(1.5, 1e5),
    rho=st.floats(1, 12),
)
def test_ends_are_exact_and_every_interior_point_is_the_formula(num_sigmas, sigma_min, ratio, rho):
    sigma_max = sigma_min * ratio
    sigmas = karras_sigmas(num_sigmas, sigma_min, sigma_max, rho)
    assert sigmas.dtype == np.float64
    assert sigmas.shape == (num_sigmas,)
    assert sigmas[0] == sigma_min
    assert sigmas[-1] == sigma_max
    assert (np.diff(sigmas) > 0).all()
    for i in range(1, num_sigmas + 1):  # the paper counts from 1
        root = sigma_min ** (1 / rho) + (i - 1) / (num_sigmas - 1) * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))
        assert sigmas[i - 1] == pytest.approx(root**rho, rel=1e-12)


def test_known_points():
    # rho = 1 is linear; the middle of a cubic grid from 1 to 27 is 2^3.
    assert karras_sigmas(5, 1, 9, rho=1) == pytest.approx([1, 3, 5, 7, 9])
    assert karras_sigmas(3, 1, 27, rho=3) == pytest.approx([1, 8, 27])
    # N = 18 of the paper: the second highest of 80 ... 0.002 (Karras et al., 2022)
    assert karras_sigmas(18, 0.002, 80)[-2] == pytest.approx(57.586, abs=1e-3)
    assert karras_sigmas(2, 0.002, 80).tolist() == [0.002, 80]


def test_rho_is_7_unless_told_and_a_larger_rho_crowds_low_noise():
    assert karras_sigmas(9, 0.002, 80).tolist() == karras_sigmas(9, 0.002, 80, 7).tolist()
    assert karras_sigmas(9, 0.002, 80, 10)[4] < karras_sigmas(9, 0.002, 80, 7)[4]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((1, 0.002, 80), "num_sigmas is 1; a grid needs at least 2 points"),
        ((18, 0.0, 80), "sigma_min 0.0 and sigma_max 80"),
        ((18, -1, 80), "sigma_min -1"),
        ((18, 80, 80), "sigma_min 80 and sigma_max 80"),
        ((18, 80, 0.002), "0 < sigma_min < sigma_max"),
        ((18, 0.002, 80, 0), "rho is 0; it must be positive"),
        ((18, float("nan"), 80), "sigma_min nan"),
    ],
)
def test_impossible_grids_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        karras_sigmas(*args)
