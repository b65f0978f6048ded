"""One training step of the reference, replayed: what its networks were asked and what they answered is on file.

The networks' recorded answers stand in for the networks, so these tests need no weights.
"""

import pytest
import torch
from reference_net import network

from cmray.core.distances import distances
from cmray.core.precond import Denoiser, expand, make_precond
from cmray.core.weights import weight
from cmray.nn.adm_state import to_openai
from cmray.objectives import ObjectiveContext, Roles, objectives
from cmray.objectives.pairs import Pair

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
    x_lo = objective.earlier(
        Roles(student, teacher=teacher), Pair(x0, z, x_hi, sigma_hi, sigma_lo, sigma_hi - sigma_lo), None
    )
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
    x_lo = objective.earlier(Roles(student), Pair(x0, z, x_hi, sigma_hi, sigma_lo, sigma_hi - sigma_lo), None)
    goal = record.answer("call1_target")(x_lo, sigma_lo, None)
    expected = record.numbers[f"ct_{distance}/loss"]
    torch.testing.assert_close(objective.distance(student(x_hi, sigma_hi, None), goal), expected, rtol=1e-4, atol=0)


def test_progressive_distillation(golden, monkeypatch):
    record = Record(golden("e_losses.npz"), "pd_l2_n4")
    student, teacher = record.answer("call0_online"), record.answer("call1_teacher", "call2_teacher")
    values = {"name": "pd", "num_sigmas": {"name": "halving", "start": 4}}
    objective = objectives.parse(values).build(CONTEXT)
    assert objective.num_sigmas_at(0) == 5
    # index i of the reference, descending in noise, is our interval 3 - i; the noise of the file is drawn
    monkeypatch.setattr("cmray.objectives.pd.uniform_index", lambda *_: 3 - record["indices"])
    monkeypatch.setattr("torch.randn", lambda *_, **__: record.numbers["noise"])
    out = objective.loss(Roles(student, None, teacher), record.numbers["x_start"], None, 0, torch.Generator())
    assert not student.left
    assert not teacher.left
    torch.testing.assert_close(out.loss, record["loss"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["cd_heun_l2", "ct_l2"])
def test_whole_consistency_losses(golden, monkeypatch, name):
    record = Record(golden("e_losses.npz"), name)
    calls = {"cd_heun_l2": ["call0_online", "call3_target", "call1_teacher", "call2_teacher"]}
    online, target, *teacher = calls.get(name, ["call0_online", "call1_target"])
    values = {"name": name[:2], "num_sigmas": 18} | ({"solver": "heun"} if teacher else {})
    objective = objectives.parse(values).build(CONTEXT)
    monkeypatch.setattr("cmray.core.times.uniform_index", lambda *_: 16 - record["indices"])
    monkeypatch.setattr("torch.randn", lambda *_, **__: record.numbers["noise"])
    roles = Roles(*(record.answer(*asked) for asked in ([online], [target], teacher)))
    out = objective.loss(roles, record.numbers["x_start"], None, 0, torch.Generator())
    torch.testing.assert_close(out.loss, record["loss"], rtol=1e-4, atol=1e-8)


def test_edm_weights_its_squared_error(golden):
    numbers = golden("e_losses.npz")
    sigma, error = (torch.from_numpy(numbers[f"edm/{key}"]) for key in ("sigma", "xs_mse"))
    expected = torch.from_numpy(numbers["edm/loss"])
    torch.testing.assert_close(weight("karras", sigma, 0.5) * error, expected, rtol=1e-4, atol=0)
    # the same from one squared distance a sample
    image = error.sqrt().reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    l2 = distances.parse("l2").build(torch.device("cpu"))
    torch.testing.assert_close(weight("karras", sigma, 0.5) * l2(image, 0 * image), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["cd_heun_l2", "ct_l2", "ct_l1", "pd_l2_n4", "edm"])
def test_losses_and_gradients_of_whole_networks(golden, monkeypatch, name):
    """Nothing recorded stands in here: our networks with the reference's weights, from the image to the gradient."""
    numbers, meta = golden("e_losses.npz"), golden("e_losses_meta.json")[name]
    record = Record(numbers, name)
    kind, last = name.split("_")[0], name.split("_")[1:2]
    values: dict = {"name": kind}
    if kind in ("cd", "ct"):
        values |= {"num_sigmas": 18, "distance": last[0] if kind == "ct" else "l2", "mu": 0.9}
        monkeypatch.setattr("cmray.core.times.uniform_index", lambda *_: 16 - record["indices"])
    elif kind == "pd":
        values["num_sigmas"] = {"name": "halving", "start": 4}
        monkeypatch.setattr("cmray.objectives.pd.uniform_index", lambda *_: 3 - record["indices"])
    else:
        monkeypatch.setattr("cmray.core.times.lognormal_sigma", lambda *_: record["sigma"])
    config = objectives.parse(values)
    monkeypatch.setattr("torch.randn", lambda *_, **__: record.numbers["noise"])
    student, adm = network(golden, "cond_updown", 1)
    denoisers = [
        Denoiser(network(golden, "cond_updown", seed)[0], make_precond(precond, 0.5, 0.002))
        for seed, precond in ((2, config.precond), (3, "edm"))
    ]
    roles = Roles(Denoiser(student, make_precond(config.precond, 0.5, 0.002)), *denoisers)
    x0, label = record.numbers["x_start"], record.numbers["y"]
    out = config.build(CONTEXT).loss(roles, x0, label, 0, torch.Generator())
    torch.testing.assert_close(out.loss.detach(), record["loss"], rtol=1e-4, atol=2e-7)
    out.loss.mean().backward()
    grads = to_openai({n: p.grad for n, p in student.named_parameters()}, adm)
    for key in ("out.2.bias", "input_blocks.0.0.weight"):
        expected = record[f"grad/{key}"]
        assert (grads[key] - expected).norm() < 1e-4 * expected.norm(), key
    total = torch.stack([g.norm() for g in grads.values()]).norm().item()
    assert total == pytest.approx(meta["grad_norm_total"], rel=1e-4)
