"""Progressive distillation, improved consistency training and easy consistency tuning."""

import math

import pytest
import torch
from gaussian_truth import Calls, Gaussian
from pydantic import ValidationError

from cmray.core.grids import karras_sigmas
from cmray.objectives import ObjectiveContext, Roles, Transition, objectives
from cmray.solvers import solvers

DATA = Gaussian()
CPU = torch.device("cpu")


def context(steps=90):
    return ObjectiveContext(sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=0.4, steps=steps, device=CPU)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- progressive distillation

PD = {"name": "pd", "num_sigmas": {"name": "halving", "start": 64}}


def test_one_step_of_the_goal_lands_where_two_of_the_teacher_land():
    euler = solvers.parse("euler")
    student, teacher = Calls(lambda x, sigma, label: 0.3 * x), Calls(DATA.denoise)
    seen = {}
    objective = objectives.parse(PD | {"weight": "uniform"}).build(context())

    def distance(a, b):
        seen["goal"] = b
        return (a - b).square().flatten(1).mean(1)

    objective.distance = distance
    out = objective.loss(Roles(student, None, teacher), DATA.draw(300, 1, 2, 2), None, 0, generator())
    (x_hi, sigma_hi, _), (x_first, sigma_first, _), (x_mid, sigma_mid, _) = [*student.seen, *teacher.seen]
    assert torch.equal(x_hi, x_first)
    assert torch.equal(sigma_hi, sigma_first)
    assert torch.equal(out.sigma, sigma_hi)
    fine = torch.from_numpy(karras_sigmas(129, 0.002, 80.0)).float()
    where = [int((fine == s).nonzero()) for s in sigma_hi]
    assert all(i % 2 == 0 and i > 0 for i in where)
    assert len(set(where)) > 50
    assert torch.equal(sigma_mid, fine[torch.tensor(where) - 1])
    sigma_lo = fine[torch.tensor(where) - 2]
    x_lo = euler.step(DATA.denoise, x_mid, sigma_mid, sigma_lo, None)
    torch.testing.assert_close(
        euler.step(lambda *_: seen["goal"], x_hi, sigma_hi, sigma_lo, None), x_lo, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("step", [0, 45, 89])
def test_every_level_of_the_students_grid_but_the_lowest_is_drawn(step):
    objective = objectives.parse(PD).build(context())
    lo, mid, hi = objective.levels(step, 6000, generator())
    n = objective.num_sigmas_at(step)
    fine = torch.from_numpy(karras_sigmas(2 * n - 1, 0.002, 80.0)).float().tolist()
    assert sorted(set(hi.tolist())) == fine[2::2]
    assert sorted(set(mid.tolist())) == fine[1::2]
    assert sorted(set(lo.tolist())) == fine[:-1:2]


def test_the_weight_is_taken_at_the_upper_noise_level():
    student, teacher = Calls(lambda x, sigma, label: 0.3 * x), DATA.denoise
    plain, weighed = (
        objectives.parse(PD | {"weight": w})
        .build(context())
        .loss(Roles(student, None, teacher), DATA.draw(50, 1, 2, 2), None, 0, generator())
        for w in ("uniform", "truncated-snr")
    )
    torch.testing.assert_close(weighed.loss, plain.loss * (1 / plain.sigma**2).clamp(min=1))


def test_stages_halve_and_the_student_becomes_the_teacher_between_them():
    objective = objectives.parse(PD).build(context(steps=90))
    steps = [int(objective.schedule(k)["num_sigmas"]) - 1 for k in range(90)]
    assert steps == [64] * 10 + [32] * 10 + [16] * 10 + [8] * 10 + [4] * 10 + [2] * 20 + [1] * 20
    changes = [k for k in range(1, 91) if objective.transition(k) is not None]
    assert changes == [10, 20, 30, 40, 50, 70]
    assert objective.transition(10) == Transition(
        teacher_from_student=True, ema_from_student=True, reset_optimizer=True
    )


@pytest.mark.parametrize("start", [0, 3, 48, 63])
def test_a_start_that_cannot_be_halved_to_one_is_refused(start):
    with pytest.raises(ValidationError, match=r"power of two|greater than or equal to 1"):
        objectives.parse({"name": "pd", "num_sigmas": {"name": "halving", "start": start}})


@pytest.mark.parametrize("num_sigmas", [18, "adaptive", {"name": "fixed", "num_sigmas": 64}])
def test_only_a_halving_grid_is_taken(num_sigmas):
    with pytest.raises(ValidationError, match=r"num_sigmas.* objective\.name pd"):
        objectives.parse({"name": "pd", "num_sigmas": num_sigmas})


def test_a_run_too_short_for_its_stages_is_refused():
    config = objectives.parse(PD)
    config.check_steps(9)
    with pytest.raises(ValueError, match=r"objective\.num_sigmas\.start is 64.* 9 steps, but train\.steps is 8"):
        config.check_steps(8)


# ---------------------------------------------------------------- easy consistency tuning


def levels(step=0, steps=80, batch=4000, **options):
    objective = objectives.parse({"name": "ect", **options}).build(context(steps))
    at = objective.levels(step, batch, generator())
    return objective, at.sigma_lo, at.sigma_hi


def test_the_mapping_is_the_formula_and_its_stages_cut_the_run():
    for step, stage in ((0, 0), (9, 0), (10, 1), (79, 7), (80, 7)):
        objective, r, t = levels(step)
        assert objective.schedule(step) == {"stage": stage}
        n = 1 + 8 / (1 + torch.exp(t))
        torch.testing.assert_close(r, (t * (1 - n / 2 ** (stage + 1))).clamp(min=0))
        assert (r < t).all()
    constant = levels(40, mapping="constant", q=4.0)
    torch.testing.assert_close(constant[1], constant[2] * (1 - 4.0 ** -(4 + 1)))


def test_levels_are_lognormal():
    _, _, t = levels(batch=40_000)
    assert t.log().mean().item() == pytest.approx(-1.1, abs=0.05)
    assert t.log().std().item() == pytest.approx(2.0, abs=0.05)


def test_at_level_0_the_goal_is_the_clean_image_and_elsewhere_the_network():
    student = Calls(lambda x, sigma, label: 0.5 * x)
    objective = objectives.parse("ect").build(context(80))
    x0 = DATA.draw(400, 1, 2, 2)
    seen = {}
    objective.distance = lambda a, b: seen.setdefault("goal", b).flatten(1).sum(1) * 0 + (a - b).flatten(1).sum(1)
    out = objective.loss(Roles(student), x0, None, 0, generator())
    assert out.loss.isfinite().all()
    (x_r, level, _), (x_t, t, _) = student.seen
    r = t - objective.gap(t, 0)
    assert 0.2 < (r == 0).float().mean() < 0.9
    assert (level > 0).all()
    assert torch.equal(seen["goal"][r == 0], x0[r == 0])
    torch.testing.assert_close(seen["goal"][r > 0], 0.5 * x_r[r > 0])
    z = (x_t - x0) / t.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(x_r, x0 + r.reshape(-1, 1, 1, 1) * z, rtol=1e-4, atol=1e-4)


def test_its_loss_is_the_norm_over_dt():
    student = Calls(lambda x, sigma, label: 0.5 * x)
    objective = objectives.parse("ect").build(context(80))
    x0 = DATA.draw(50, 1, 2, 2)
    out = objective.loss(Roles(student), x0, None, 79, generator())
    (x_r, _, _), (x_t, t, _) = student.seen
    r = t - objective.gap(t, 79)
    goal = torch.where((r > 0).reshape(-1, 1, 1, 1), 0.5 * x_r, x0)
    torch.testing.assert_close(out.loss, (0.5 * x_t - goal).flatten(1).norm(dim=1) / (t - r), rtol=1e-4, atol=1e-4)


def test_a_student_that_meets_its_goal_exactly_has_a_gradient_of_zero():
    """The norm has no derivative at 0; a NaN there would end the run."""
    scale = torch.tensor(1.0, requires_grad=True)
    x0 = torch.zeros(4, 1, 2, 2)
    objective = objectives.parse("ect").build(context(80))
    objective.loss(Roles(lambda x, sigma, label: scale * 0 * x), x0, None, 0, generator()).loss.sum().backward()
    assert scale.grad == 0


def test_the_gap_stays_exact_when_it_is_small():
    """t - r in float32 would lose what the last stages are about."""
    objective = objectives.parse({"name": "ect", "q": 256.0, "stages": 2}).build(context(80))
    at = objective.levels(79, 4000, generator())
    n = 1 + 8 / (1 + at.sigma_hi.double().exp())
    torch.testing.assert_close(at.dt.double(), at.sigma_hi.double() * n / 256**2, rtol=1e-5, atol=0)
    out = objective.loss(Roles(lambda x, sigma, label: 0.5 * x), DATA.draw(500, 1, 2, 2), None, 79, generator())
    assert out.loss.isfinite().all()


def test_ect_refusals():
    with pytest.raises(ValidationError, match=r"q 256 and stages 8 make t - r smaller"):
        objectives.parse({"name": "ect", "q": 256})
    for field in ("solver", "num_sigmas", "mu"):
        with pytest.raises(ValidationError, match=rf"{field} is .*objective\.name is ect, which has no {field}"):
            objectives.parse({"name": "ect", field: "heun"})
    with pytest.raises(ValidationError, match=r"weight is snr, but objective\.name ect"):
        objectives.parse({"name": "ect", "weight": "snr"})
    with pytest.raises(ValueError, match=r"objective\.stages is 8, but train\.steps is only 7"):
        objectives.parse("ect").check_steps(7)


# ---------------------------------------------------------------- improved consistency training


def test_ict_is_ct_with_the_improvements():
    config = objectives.parse("ict")
    plain = objectives.parse(
        {
            "name": "ct",
            "num_sigmas": {"name": "doubling", "s0": 10, "s1": 1280},
            "mu": 0,
            "distance": {"name": "pseudo-huber", "factor": 0.00054},
            "weight": "1/dt",
            "times": {"name": "lognormal", "P_mean": -1.1, "P_std": 2.0},
        }
    )
    assert config.model_dump() | {"name": "ct"} == plain.model_dump()
    student = lambda x, sigma, label: torch.tanh(x)
    losses = [
        c.build(context(steps=800)).loss(Roles(student), DATA.draw(20, 1, 2, 2), None, 500, generator()).loss
        for c in (config, plain)
    ]
    assert torch.equal(*losses)
    assert not config.needs_target


def test_without_a_target_network_the_student_is_asked_without_gradients():
    scale = torch.tensor(0.5, requires_grad=True)
    graded = []

    def student(x, sigma, label):
        graded.append(torch.is_grad_enabled())
        return scale * x

    objectives.parse("ict").build(context()).loss(Roles(student), DATA.draw(8, 1, 2, 2), None, 0, generator())
    assert graded == [False, True]


def test_grids_that_do_not_fit_are_refused():
    for values, message in (
        ({"name": "ct", "num_sigmas": "halving"}, r"num_sigmas\.name is halving.*not ct"),
        (
            {"name": "ict", "times": "loss-second-moment"},
            r"times\.name is loss-second-moment.*num_sigmas\.name is doubling",
        ),
        ({"name": "ct", "solver": "heun"}, r"solver is 'heun'.*objective\.name is ct, which has no teacher"),
    ):
        with pytest.raises(ValidationError, match=message):
            objectives.parse(values)


def test_a_learning_time_sampler_leaves_the_mean_loss_unbiased():
    """Draws follow the losses; each carries the factor that undoes it."""
    data = DATA.draw(4000, 1, 1, 1)
    student = lambda x, sigma, label: 0.3 * x
    uniform = objectives.parse({"name": "ct", "num_sigmas": 5}).build(context())
    plain = uniform.loss(Roles(student, student), data, None, 0, generator(1)).mean().item()
    learning = objectives.parse({"name": "ct", "num_sigmas": 5, "times": "loss-second-moment"}).build(context())
    first = learning.loss(Roles(student, student), data, None, 0, generator(1))
    learning.times.observe(first.draw.bin, first.loss)
    out = learning.loss(Roles(student, student), data, None, 0, generator(2))
    counts = torch.bincount(out.draw.bin, minlength=4)
    assert counts.max() > 4 * counts.float().median(), "draws do not follow the losses"
    assert out.mean().item() == pytest.approx(plain, rel=0.1)
    assert not math.isclose(out.loss.mean().item(), plain, rel_tol=0.2), "the plain mean should be biased"
