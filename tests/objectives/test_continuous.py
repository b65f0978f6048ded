"""Theorems 3 to 6: the discrete losses, times a power of N - 1, become the continuous ones as the grid gets finer."""

import pytest
import torch
from gaussian_truth import Calls, Gaussian
from pydantic import ValidationError

from cmray.core.distances import distances
from cmray.core.precond import expand
from cmray.core.times import Draw, KarrasCurve
from cmray.objectives import ObjectiveContext, Roles, objectives
from cmray.objectives.continuous import metric_product, total_derivative
from cmray.objectives.pairs import Levels

DATA = Gaussian()
CONTEXT = ObjectiveContext(
    sigma_min=0.02, sigma_max=10.0, rho=7.0, sigma_data=0.5, steps=10, device=torch.device("cpu")
)
CURVE = KarrasCurve(0.02, 10.0, 7.0)
X0 = DATA.draw(24, 1, 2, 2).double()
U = torch.linspace(0.05, 0.95, 24, dtype=torch.float64)


def wrong_student():
    """f = a flow(x) + b tanh(x/(1+sigma)): not consistent, with parameters to differentiate by."""
    theta = torch.tensor([0.8, 0.3], dtype=torch.float64, requires_grad=True)
    flow = DATA.consistency(0.02)

    def f(x, sigma, label=None):
        return theta[0] * flow(x, sigma, label) + theta[1] * torch.tanh(x / (1 + expand(sigma, x)))

    return theta, f


def at(objective, lo, hi=None):
    """The objective, made to use these noise levels: the lower ones of pairs, or the only ones."""
    if hi is None:
        objective.times.sigma = lambda *_: Draw(lo)
    else:
        objective.levels = lambda *_: Levels(lo, hi, hi - lo, Draw(lo))
    return objective


def evaluate(objective, f):
    generator = torch.Generator().manual_seed(0)
    return objective.loss(Roles(f, None, DATA.denoise), X0, None, 0, generator).loss


def discrete(name, distance, intervals, f, weight="uniform"):
    values = {"name": name, "mu": 0.0, "distance": distance, "weight": weight}
    if name == "cd":
        values["solver"] = "euler"
    objective = objectives.parse(values).build(CONTEXT)
    return evaluate(at(objective, CURVE.sigma(U), CURVE.sigma(U + 1 / intervals)), f)


def continuous(values, f):
    return evaluate(at(objectives.parse(values).build(CONTEXT), CURVE.sigma(U)), f)


def falls_like_one_over_n(errors, scale):
    assert errors[-1] < 0.05 * scale, (errors, scale)
    assert errors[0] / errors[-1] == pytest.approx(4, rel=0.3), errors


LEVELS = (200, 400, 800)


@pytest.mark.parametrize("distance", ["l2", {"name": "pseudo-huber", "factor": 0.3}], ids=["l2", "pseudo-huber"])
@pytest.mark.parametrize("name", ["cd", "ct"])
def test_with_stopgrad_the_gradient_is_the_limit_of_n_minus_1_times_the_discrete_one(name, distance):
    theta, f = wrong_student()
    (limit,) = torch.autograd.grad(continuous({"name": f"{name}-continuous", "distance": distance}, f).sum(), theta)
    errors = []
    for intervals in LEVELS:
        (gradient,) = torch.autograd.grad(intervals * discrete(name, distance, intervals, f).sum(), theta)
        errors.append((gradient - limit).abs().max().item())
    falls_like_one_over_n(errors, limit.abs().max().item())


@pytest.mark.parametrize(
    ("distance", "power"), [("l2", 2), ({"name": "pseudo-huber", "factor": 0.3}, 2), ("l1", 1)], ids=["l2", "ph", "l1"]
)
def test_with_the_student_as_target_the_loss_is_the_limit_of_the_discrete_one(distance, power):
    """Theorem 3 for smooth distances, Theorem 4 for l1. Its gradient is that of its value: f is not stopped."""
    theta, f = wrong_student()
    values = {"name": "cd-continuous", "distance": distance, "theta_minus": "student"}
    limit = continuous(values, f)
    assert torch.autograd.grad(limit.sum(), theta)[0].abs().max() > 1e-3
    errors = [(n**power * discrete("cd", distance, n, f) - limit).abs().sum().item() for n in LEVELS]
    falls_like_one_over_n(errors, limit.abs().sum().item())


def test_the_gradient_of_the_unstopped_loss_is_that_of_finite_differences():
    theta, f = wrong_student()
    values = {"name": "cd-continuous", "theta_minus": "student"}
    (gradient,) = torch.autograd.grad(continuous(values, f).sum(), theta)
    for i in range(2):
        ends = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                theta[i] += h
                ends.append(continuous(values, f).sum())
                theta[i] -= h
        assert gradient[i].item() == pytest.approx(((ends[0] - ends[1]) / 2e-5).item(), rel=1e-5)


@pytest.mark.parametrize(
    "values", [{"name": "cd-continuous"}, {"name": "cd-continuous", "theta_minus": "student"}], ids=["stop", "student"]
)
def test_the_exact_consistency_function_has_no_loss_and_no_gradient(values):
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    flow = DATA.consistency(0.02)
    loss = continuous(values, lambda x, sigma, label=None: theta * flow(x, sigma))
    assert loss.max() < 1e-20
    assert torch.autograd.grad(loss.sum(), theta)[0].abs() < 1e-9


def test_weight_1_over_dt_takes_the_speed_of_the_grid_out_of_the_loss():
    _, f = wrong_student()
    even = continuous({"name": "ct-continuous", "weight": "1/dt"}, f)
    plain = continuous({"name": "ct-continuous"}, f)
    torch.testing.assert_close(plain, even * CURVE.slope(CURVE.sigma(U)))


def test_the_total_derivative_is_that_of_finite_differences_and_zero_along_the_flow():
    x, sigma = 2 * X0, CURVE.sigma(U)
    _, f = wrong_student()
    direction = torch.sin(x)
    value, derivative = total_derivative(f, x, sigma, direction, None)
    h = 1e-6
    ends = [f(x + s * h * direction, sigma + s * h) for s in (1, -1)]
    torch.testing.assert_close(value, f(x, sigma))
    torch.testing.assert_close(derivative, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name", [n for n in distances.names() if distances.get(n)().is_smooth and n in ("l2", "pseudo-huber")]
)
def test_the_metric_is_the_second_derivative_of_the_distance(name):
    distance = distances.parse(name).build(torch.device("cpu"))
    a, v = X0, torch.randn(X0.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    h = 1e-5
    product = (metric_product(distance, a, v) * v).flatten(1).sum(1)
    torch.testing.assert_close(product, 2 * distance(a + h * v, a) / h**2, rtol=1e-3, atol=0)


def test_the_direction_is_the_teachers_or_the_noise():
    student, teacher = Calls(lambda x, sigma, label: 0.5 * x), Calls(DATA.denoise)
    x0 = DATA.draw(6, 1, 2, 2)
    for name, asked in (("cd-continuous", 1), ("ct-continuous", 0)):
        objective = objectives.parse(name).build(CONTEXT)
        seen = {}
        inner = objective.direction

        def spy(*args, inner=inner, seen=seen):
            seen["direction"], seen["x"], seen["z"] = inner(*args), args[1], args[2]
            return seen["direction"]

        objective.direction = spy
        before = len(teacher)
        objective.loss(Roles(student, None, teacher), x0, None, 0, torch.Generator().manual_seed(0))
        assert len(teacher) - before == asked
        if not asked:
            assert torch.equal(seen["direction"], seen["z"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "cd-continuous", "num_sigmas": 18}, r"num_sigmas is 18, but objective\.name is cd-continuous"),
        (
            {"name": "ct-continuous", "num_sigmas": {"name": "doubling"}},
            r"num_sigmas is .*objective\.name is ct-contin",
        ),
        ({"name": "cd-continuous", "solver": "heun"}, r"solver is 'heun', but objective\.name is cd-continuous"),
        ({"name": "ct-continuous", "distance": "l1"}, r"distance\.name is l1, .* objective\.name is ct-continuous"),
        ({"name": "cd-continuous", "distance": "l1"}, r"distance\.name is l1, .* objective\.name is cd-continuous"),
        ({"name": "cd-continuous", "distance": "linf", "theta_minus": "student"}, r"distance\.name is linf"),
    ],
)
def test_what_has_no_limit_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        objectives.parse(values)
