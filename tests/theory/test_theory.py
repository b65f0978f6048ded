"""The theory room: its truths against closed forms and Monte Carlo, its verdicts on code that is wrong on purpose."""

import csv
import math
from pathlib import Path

import pytest
import torch

from cmray.core.errors import ConfigError
from cmray.report.theory import orders_figure, orders_table
from cmray.theory.config import MixtureConfig, load_theory
from cmray.theory.measure import Curve, measure
from cmray.theory.truth import Mixture, gauss_hermite

FILE = Path(__file__).resolve().parents[2] / "experiments" / "theory.yaml"
TWO = Mixture(MixtureConfig(means=(-1.0, 0.8), stds=(0.4, 0.3), shares=(3, 2)))
ONE = Mixture(MixtureConfig(means=(0.3,), stds=(0.5,), shares=(1,)))


@pytest.fixture(scope="module")
def shipped():
    """The shipped file on the cheaper half of its grids."""
    return load_theory(FILE, ["theory.intervals=[16, 32, 64, 128]", "theory.nodes=20"])


@pytest.fixture(scope="module")
def curves(shipped):
    return measure(shipped.theory)


def test_every_order_of_the_shipped_file_is_that_of_the_theory(curves):
    assert {c.theorem for c in curves} == {f"Theorem {i}" for i in range(1, 7)}
    assert {c.data for c in curves} == {"Gaussian", "mixture"}
    by_solver = {(c.label, c.expected) for c in curves if c.theorem == "Theorem 1"}
    assert by_solver == {("euler", 1), ("heun", 2), ("dpm-solver-2", 2)}
    for c in curves:
        assert c.holds, f"{c.theorem} {c.label} {c.data}: order {c.order}"
        assert list(c.errors) == sorted(c.errors, reverse=True)
        assert c.errors[-1] < 0.05


def test_a_teacher_that_is_a_little_wrong_is_noticed(shipped, monkeypatch):
    exact = Mixture.denoise
    monkeypatch.setattr(Mixture, "denoise", lambda self, x, s, label=None: exact(self, x, s) + 0.01)
    flow = Mixture.flow
    monkeypatch.setattr(
        Mixture, "flow", lambda self, *args: _with(Mixture, "denoise", exact, lambda: flow(self, *args))
    )
    config = shipped.theory.model_copy(update={"data": {"Gaussian": shipped.theory.data["Gaussian"]}})
    assert not all(c.holds for c in measure(config) if c.theorem == "Theorem 1")


def _with(cls, name, value, call):
    now = getattr(cls, name)
    setattr(cls, name, value)
    try:
        return call()
    finally:
        setattr(cls, name, now)


def test_the_denoiser_is_the_posterior_mean():
    """Against the integral of x0 p(x0) N(x; x0, sigma^2) over a fine grid."""
    grid = torch.linspace(-4, 4, 40_001, dtype=torch.float64)
    density = sum(
        w * torch.exp(-((grid - m) ** 2) / (2 * s * s)) / s for w, m, s in ((0.6, -1.0, 0.4), (0.4, 0.8, 0.3))
    )
    for x, sigma in ((0.1, 0.05), (-0.4, 0.7), (3.0, 5.0)):
        posterior = density * torch.exp(-((x - grid) ** 2) / (2 * sigma**2))
        mean = (grid * posterior).sum() / posterior.sum()
        found = TWO.denoise(torch.tensor([[[[x]]]], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64))
        assert found.item() == pytest.approx(mean.item(), abs=1e-9)


def test_the_flow_of_one_gaussian_is_the_closed_form_and_that_of_a_mixture_keeps_its_quantiles():
    x = torch.linspace(-20, 20, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    exact = 0.3 + (x - 0.3) * math.sqrt((0.25 + 0.02**2) / (0.25 + 100))
    torch.testing.assert_close(ONE.flow(x, 10.0, 0.02), exact, rtol=0, atol=1e-10)

    def cdf(y, sigma):
        parts = zip((0.6, 0.4), (-1.0, 0.8), (0.4, 0.3), strict=True)
        return sum(w * torch.special.ndtr((y - m) / math.sqrt(s * s + sigma**2)) for w, m, s in parts)

    moved = TWO.flow(x, 10.0, 0.02)  # the flow maps p_10 to p_0.02 monotonically
    torch.testing.assert_close(cdf(moved, 0.02), cdf(x, 10.0), rtol=0, atol=1e-9)


def test_nodes_integrate_polynomials_exactly():
    z, w = gauss_hermite(12)
    assert [(w * z**k).sum().item() for k in (0, 2, 4)] == pytest.approx([1, 1, 3])
    x0, weights = TWO.nodes(12)
    mean = (weights * x0.reshape(-1)).sum().item()
    variance = (weights * (x0.reshape(-1) - mean) ** 2).sum().item()
    assert mean == pytest.approx(0.6 * -1 + 0.4 * 0.8)
    assert math.sqrt(variance) == pytest.approx(TWO.std)


def test_order_and_verdict():
    curve = Curve("Theorem 1", "e", "euler", "d", (10, 20, 40), (1.0, 0.5, 0.25), 1.0)
    assert curve.order == pytest.approx(1)
    assert curve.holds
    assert not Curve("Theorem 1", "e", "heun", "d", (10, 20, 40), (1.0, 0.5, 0.25), 2.0).holds


def test_figure_and_table_hold_every_curve(curves, tmp_path):
    rows = list(csv.DictReader(orders_table(curves, tmp_path).open()))
    assert len(rows) == len(curves)
    assert {row["holds"] for row in rows} == {"yes"}
    png, svg = orders_figure(curves, tmp_path)
    assert png.stat().st_size > 50_000
    assert svg.is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("theory.intervals=[4, 4, 8]", "intervals must be positive and ascending"),
        ("theory.data.mixture.stds=[1]", "means, stds and shares must be equally many, found 2, 1 and 2"),
        ("theory.data.mixture.shares=[1, -1]", "must be positive"),
        ("theory.solvers=[hein]", "unknown solver 'hein'; did you mean 'heun'?"),
        ("theory.noise.sigma_min=20", "sigma_min 20.0 must be below sigma_max 10.0"),
        ("theory.nods=3", "theory.nods: unknown key; did you mean 'nodes'?"),
    ],
)
def test_bad_files_are_refused_in_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load_theory(FILE, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "theory" in str(caught.value)
