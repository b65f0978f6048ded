"""Loss weights against their formulas."""

import pytest
import torch

from cmray.core.weights import weight

SIGMA = torch.tensor([0.002, 0.5, 1.0, 3.0, 80.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("uniform", lambda s: 1.0),
        ("snr", lambda s: 1 / s**2),
        ("snr+1", lambda s: 1 / s**2 + 1),
        ("truncated-snr", lambda s: max(1 / s**2, 1)),
        ("karras", lambda s: (s**2 + 0.3**2) / (s * 0.3) ** 2),
    ],
)
def test_formula(name, formula):
    expected = torch.tensor([formula(s) for s in SIGMA.tolist()], dtype=torch.float64)
    torch.testing.assert_close(weight(name, SIGMA, 0.3), expected, rtol=1e-12, atol=0)


def test_one_over_dt_needs_and_uses_the_step_sizes():
    dt = torch.tensor([0.1, 0.5, 2.0, 4.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(weight("1/dt", SIGMA, 0.3, dt) * dt, torch.ones_like(dt))
    with pytest.raises(ValueError, match="needs the step sizes"):
        weight("1/dt", SIGMA, 0.3)


def test_an_unknown_weight_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown weight 'snr\+2'; allowed: uniform, snr"):
        weight("snr+2", SIGMA, 0.3)  # type: ignore[arg-type]
