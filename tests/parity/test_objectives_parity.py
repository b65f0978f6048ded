"""One training step of the reference, replayed: what its networks were asked and what they answered is on file.

The networks' recorded answers stand in for the networks, so these tests need no weights.
"""

import pytest
import torch

from cmray.core.distances import distances
from cmray.core.precond import expand
from cmray.core.weights import weight
from cmray.objectives import ObjectiveContext, Roles, objectives
from cmray.objectives.consistency import Pair
from cmray.solvers import solvers

pytestmark = pytest.mark.golden

CONTEXT = ObjectiveContext(
    sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=0.5, steps=10, device=torch.device("cpu")
)


class Record:
    """One case of e_losses.npz; `answer` is a denoiser that must be asked what the reference asked."""

    def __init__(self, numbers, case):
        self.case = case
        self.numbers = {key: torch.from_numpy(numbers[key]) for key in numbers}

    def __getitem__(self, key):
        return self.numbers[f"{self.case}/{key}"]

    def answer(self, *calls):
        left = list(calls)

        def denoise(x, sigma, label):
            call = left.pop(0)
            torch.testing.assert_close(sigma, self[f"{call}/sigma"], rtol=2e-6, atol=0)
            torch.testing.assert_close(x, self[f"{call}/x_t"], rtol=1e-5, atol=1e-4)
            return self[f"{call}/denoised"]

        denoise.left = left
        return denoise


def pair(objective, record, intervals):
    """Noise levels of the reference's indices, which descend in noise: index i is our interval N - 2 - i."""
    sigmas = objective.sigmas_at(0)
    n = intervals - 1 - record["indices"]
    return sigmas[n], sigmas[n + 1]


def test_consistency_distillation_with_heun(golden):
    record = Record(golden("e_losses.npz"), "cd_heun_l2")
    x0, z = record.numbers["x_start"], record.numbers["noise"]
    objective = objectives.parse({"name": "cd", "solver": "heun", "num_sigmas": 18}).build(CONTEXT)
    sigma_lo, sigma_hi = pair(objective, record, 17)
    x_hi = x0 + expand(sigma_hi, x0) * z
    student = record.answer("call0_online")(x_hi, sigma_hi, None)
    teacher = record.answer("call1_teacher", "call2_teacher")
    x_lo = objective.earlier(Roles(student, teacher=teacher), Pair(x0, z, x_hi, sigma_hi, sigma_lo), None)
    assert not teacher.left
    goal = record.answer("call3_target")(x_lo, sigma_lo, None)
    torch.testing.assert_close(objective.distance(student, goal), record["loss"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_consistency_training(golden, distance):
    # the calls of the l1 case are those of the l2 case: only the distance differs
    record = Record(golden("e_losses.npz"), "ct_l2")
    x0, z = record.numbers["x_start"], record.numbers["noise"]
    objective = objectives.parse({"name": "ct", "num_sigmas": 18, "distance": distance}).build(CONTEXT)
    sigma_lo, sigma_hi = pair(objective, record, 17)
    x_hi = x0 + expand(sigma_hi, x0) * z
    student = record.answer("call0_online")
    x_lo = objective.earlier(Roles(student), Pair(x0, z, x_hi, sigma_hi, sigma_lo), None)
    goal = record.answer("call1_target")(x_lo, sigma_lo, None)
    expected = record.numbers[f"ct_{distance}/loss"]
    torch.testing.assert_close(objective.distance(student(x_hi, sigma_hi, None), goal), expected, rtol=1e-4, atol=0)


def test_two_euler_steps_of_a_progressive_distillation_teacher(golden):
    record = Record(golden("e_losses.npz"), "pd_l2_n4")
    teacher = record.answer("call1_teacher", "call2_teacher")
    x, begin = record["call1_teacher/x_t"], record["call1_teacher/sigma"]
    middle = record["call2_teacher/sigma"]
    euler = solvers.parse("euler")
    x = euler.step(teacher, x, begin, middle, None)
    euler.step(teacher, x, middle, middle / 2, None)  # the second answer checks where the first step led
    assert not teacher.left


def test_edm_weights_its_squared_error(golden):
    numbers = golden("e_losses.npz")
    sigma, error = (torch.from_numpy(numbers[f"edm/{key}"]) for key in ("sigma", "xs_mse"))
    expected = torch.from_numpy(numbers["edm/loss"])
    torch.testing.assert_close(weight("karras", sigma, 0.5) * error, expected, rtol=1e-4, atol=0)
    # the same from one squared distance a sample
    image = error.sqrt().reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    l2 = distances.parse("l2").build(torch.device("cpu"))
    torch.testing.assert_close(weight("karras", sigma, 0.5) * l2(image, 0 * image), expected, rtol=1e-4, atol=0)
