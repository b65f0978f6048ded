"""Consistency distillation and training, on Gaussian data whose consistency function is known."""

import itertools
import math

import pytest
import torch
from gaussian_truth import Calls, Gaussian, measured_order
from pydantic import ValidationError

from cmray.core.grids import karras_sigmas
from cmray.core.times import Draw
from cmray.objectives import Loss, ObjectiveContext, Roles, objectives
from cmray.solvers import solvers

DATA = Gaussian()
EPS = 0.002
WEIGHTS = {
    "uniform": lambda lo, hi: torch.ones_like(lo),
    "snr": lambda lo, hi: 1 / lo**2,
    "snr+1": lambda lo, hi: 1 / lo**2 + 1,
    "truncated-snr": lambda lo, hi: (1 / lo**2).clamp(min=1),
    "karras": lambda lo, hi: 1 / lo**2 + 1 / 0.4**2,
    "1/dt": lambda lo, hi: 1 / (hi - lo),
}


def context(sigma_min=EPS, steps=100):
    return ObjectiveContext(
        sigma_min=sigma_min, sigma_max=80.0, rho=7.0, sigma_data=0.4, steps=steps, device=torch.device("cpu")
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_roles(sigma_min=EPS):
    f = DATA.consistency(sigma_min)
    return Roles(student=Calls(f), target=Calls(f), teacher=Calls(DATA.denoise))


@pytest.mark.parametrize("name", solvers.names())
def test_with_an_exact_student_the_distillation_loss_is_the_solver_error(name):
    """Its sum over the grid falls at the solver's global order; f maps every point to sigma_min."""
    x0 = DATA.draw(20_000, 1, 1, 1)
    errors = []
    for intervals in (16, 32, 64):
        values = {"name": "cd", "solver": name, "num_sigmas": intervals + 1, "distance": "l1"}
        out = objectives.parse(values).build(context()).loss(exact_roles(), x0, None, 0, generator())
        errors.append(intervals * out.loss.mean().item())
    assert errors[0] < 0.2
    assert errors[-1] < errors[0]
    assert measured_order(errors) == pytest.approx(solvers.get(name).order, abs=0.25), errors


def test_what_is_minimised_is_the_mean_with_the_importance_of_each_draw():
    losses, sigma = torch.tensor([1.0, 2.0, 6.0]), torch.ones(3)
    assert Loss(losses, sigma).mean().item() == 3
    assert Loss(losses, sigma, Draw(sigma)).mean().item() == 3
    assert Loss(losses, sigma, Draw(sigma, importance=torch.tensor([2.0, 2.0, 0.0]))).mean().item() == 2
    assert Loss(losses, sigma, Draw(sigma, importance=torch.tensor([1.0, 1.0, 1.5]))).mean().item() == 4


@pytest.mark.parametrize(
    ("num_sigmas", "steps", "points"),
    [(9, 7, 9), ({"name": "doubling"}, 5, 161), ({"name": "adaptive", "s0": 2, "s1": 3}, 1, 2)],
)
def test_times_are_searched_on_the_grid_of_the_last_training_step(num_sigmas, steps, points):
    objective = objectives.parse({"name": "ct", "num_sigmas": num_sigmas})
    assert objective.search_num_sigmas(steps) == points
    last = objective.build(context(steps=steps)).num_sigmas_at(steps - 1)
    assert last == points


def test_with_a_wrong_student_the_distillation_loss_is_not_zero():
    x0 = DATA.draw(2000, 1, 1, 1)
    f = DATA.consistency(EPS)
    wrong = Gaussian(mean=0.3, std=0.7).consistency(EPS)
    objective = objectives.parse({"name": "cd", "num_sigmas": 40}).build(context())
    right = objective.loss(Roles(f, f, DATA.denoise), x0, None, 0, generator()).loss.mean()
    assert objective.loss(Roles(wrong, wrong, DATA.denoise), x0, None, 0, generator()).loss.mean() > 20 * right


@pytest.mark.parametrize("n", [2, 5, 18])
@pytest.mark.parametrize("name", ["cd", "ct"])
def test_pairs_are_neighbours_on_the_grid_at_the_same_noise(name, n):
    x0 = DATA.draw(400, 1, 2, 2)
    roles = exact_roles()
    out = objectives.parse({"name": name, "num_sigmas": n}).build(context()).loss(roles, x0, None, 0, generator())
    ((x_hi, sigma_hi, _),) = roles.student.seen
    ((x_lo, sigma_lo, _),) = roles.target.seen
    assert torch.equal(out.sigma, sigma_hi)
    grid = torch.from_numpy(karras_sigmas(n, EPS, 80.0)).float().tolist()
    drawn = set(zip(sigma_lo.tolist(), sigma_hi.tolist(), strict=True))
    assert drawn == set(itertools.pairwise(grid)), "every interval of the grid, lower end first, and no other pair"
    z = (x_hi - x0) / sigma_hi.reshape(-1, 1, 1, 1)
    assert z.mean().item() == pytest.approx(0, abs=0.13)
    assert z.std().item() == pytest.approx(1, abs=0.1)
    expected = {"ct": lambda: x0 + sigma_lo.reshape(-1, 1, 1, 1) * z}
    if name in expected:
        torch.testing.assert_close(x_lo, expected[name](), rtol=1e-4, atol=1e-4)


def test_distillation_steps_from_the_noisy_point_with_the_teacher():
    x0, roles = DATA.draw(50, 1, 2, 2), exact_roles()
    objectives.parse({"name": "cd", "solver": "euler", "num_sigmas": 6}).build(context()).loss(
        roles, x0, None, 0, generator()
    )
    ((x_hi, sigma_hi, _),) = roles.student.seen
    ((x_lo, sigma_lo, _),) = roles.target.seen
    ((x_teacher, sigma_teacher, _),) = roles.teacher.seen
    assert torch.equal(x_teacher, x_hi)
    assert torch.equal(sigma_teacher, sigma_hi)
    assert torch.equal(x_lo, solvers.parse("euler").step(DATA.denoise, x_hi, sigma_hi, sigma_lo, None))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", ["cd", "ct"])
def test_the_loss_is_weight_times_distance_of_student_and_target(name, weight):
    x0 = DATA.draw(30, 1, 2, 2)
    student, target = Calls(lambda x, sigma, label: 0.3 * x), Calls(lambda x, sigma, label: torch.cos(x))
    roles = Roles(student, target, DATA.denoise)
    objective = objectives.parse({"name": name, "num_sigmas": 7, "weight": weight}).build(context(sigma_min=0.05))
    out = objective.loss(roles, x0, None, 0, generator())
    (x_hi, sigma_hi, _), (x_lo, sigma_lo, _) = student.seen[0], target.seen[0]
    distance = (0.3 * x_hi - torch.cos(x_lo)).square().mean((1, 2, 3))
    torch.testing.assert_close(out.loss, WEIGHTS[weight](sigma_lo, sigma_hi) * distance)


@pytest.mark.parametrize("name", ["cd", "ct"])
def test_the_weight_can_be_taken_at_the_upper_level_as_in_the_reference_code(name):
    x0, student = DATA.draw(30, 1, 2, 2), lambda x, sigma, label: 0.3 * x
    plain, upper = (
        objectives.parse({"name": name, **more})
        .build(context(sigma_min=0.05))
        .loss(Roles(student, student, DATA.denoise), x0, None, 0, generator())
        for more in ({}, {"weight": "karras", "weight_at": "upper"})
    )
    torch.testing.assert_close(upper.loss, plain.loss * WEIGHTS["karras"](upper.sigma, None))


def test_the_gradient_descends_towards_a_consistent_student():
    """A student off by a scale learns it back when its target is exact: the sign of the whole chain."""
    x0, scale = DATA.draw(500, 1, 2, 2), torch.tensor(0.5, requires_grad=True)
    f = DATA.consistency(EPS)
    objective = objectives.parse({"name": "ct", "num_sigmas": 40}).build(context())
    objective.loss(Roles(lambda *args: scale * f(*args), f), x0, None, 0, generator()).loss.mean().backward()
    assert scale.grad < 0


def test_two_points_make_the_one_pair_from_sigma_max_to_sigma_min():
    x0, roles = DATA.draw(8, 1, 2, 2), exact_roles()
    out = objectives.parse({"name": "ct", "num_sigmas": 2}).build(context()).loss(roles, x0, None, 0, generator())
    assert out.sigma.tolist() == [80.0] * 8
    assert roles.target.seen[0][1].tolist() == pytest.approx([EPS] * 8)
    assert out.loss.isfinite().all()


def test_the_grid_follows_n_of_the_step_and_the_schedule_is_logged():
    num_sigmas, mu = {"name": "adaptive", "s0": 2, "s1": 10}, {"name": "adaptive", "mu0": 0.3}
    objective = objectives.parse({"name": "ct", "num_sigmas": num_sigmas, "mu": mu}).build(context(steps=50))
    seen = []
    for step in (0, 1, 25, 49, 1, 0):
        n = math.ceil(math.sqrt(step / 50 * (11**2 - 4) + 4) - 1) + 1
        mu = math.exp(2 * math.log(0.3) / n)
        assert objective.schedule(step) == {"num_sigmas": n, "mu": pytest.approx(mu)}
        assert objective.target_mu(step) == pytest.approx(mu)
        out = objective.loss(exact_roles(), DATA.draw(200, 1, 1, 1), None, step, generator())
        assert set(out.sigma.tolist()) == set(torch.from_numpy(karras_sigmas(n, EPS, 80.0)[1:]).float().tolist())
        seen.append(n)
    assert seen == [2, 3, 8, 11, 3, 2]


def test_fixed_schedules_are_logged_too():
    objective = objectives.parse({"name": "ct", "num_sigmas": 18, "mu": 0.9}).build(context())
    assert [objective.schedule(k) for k in (0, 99)] == [{"num_sigmas": 18, "mu": 0.9}] * 2


def test_adaptive_mu_without_adaptive_n_is_refused_and_both_fields_are_named():
    with pytest.raises(ValidationError, match=r"mu\.name is adaptive, .* num_sigmas\.name is fixed"):
        objectives.parse({"name": "ct", "mu": "adaptive"})


def test_where_a_student_starts_and_how_a_row_is_called():
    assert objectives.parse("cd").starts_from == "teacher"
    assert objectives.parse({"name": "cd", "init": "random"}).starts_from == "random"
    assert objectives.parse("ct").starts_from == "random"
    assert objectives.parse({"name": "cd", "solver": "euler"}).label == "cd · euler · l2 · N=18"
    assert objectives.parse({"name": "ct", "num_sigmas": "adaptive"}).label == "ct · l2 · N(k) 2→151"
    roles = {
        name: (c.needs_target, c.needs_teacher, c.precond)
        for name in ("cd", "ct", "edm")
        for c in [objectives.parse(name)]
    }
    assert roles == {"cd": (True, True, "boundary"), "ct": (True, False, "boundary"), "edm": (False, False, "edm")}
