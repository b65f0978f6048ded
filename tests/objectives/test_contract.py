"""What every registered objective promises, with every registered distance that it can use."""

import pytest
import torch
from gaussian_truth import Calls

from cmray.core.distances import distances
from cmray.core.precond import Denoiser, make_precond
from cmray.nn import nets
from cmray.objectives import Objective, ObjectiveConfig, ObjectiveContext, Roles, objectives

SHAPE = (1, 8, 8)  # what the digits features take
CONTEXT = ObjectiveContext(
    sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=0.5, steps=2, device=torch.device("cpu")
)


def cases():
    for name in objectives.names():
        with_distance = "distance" in objectives.get(name).model_fields
        for distance in distances.names() if with_distance else [None]:
            values = {"name": name} | ({"distance": distance} if distance else {})
            yield pytest.param(values, id="-".join(values.values()))


CASES = list(cases())


class Nets:
    """Student, target and teacher as networks that all ask for gradients, so that a leak shows."""

    def __init__(self, config):
        torch.manual_seed(0)
        self.modules = {}
        roles = {"student": config.precond}
        if config.needs_target:
            roles["target"] = config.precond
        if config.needs_teacher:
            roles["teacher"] = "edm"
        denoisers = {}
        for role, precond in roles.items():
            net = nets.parse({"name": "mlp", "width": 16, "depth": 1}).build(SHAPE, num_classes=3)
            with torch.no_grad():
                for p in net.parameters():
                    p.add_(0.1 * torch.randn(p.shape))
            self.modules[role] = net
            denoisers[role] = Calls(Denoiser(net, make_precond(precond, CONTEXT.sigma_data, CONTEXT.sigma_min)))
        self.calls = denoisers
        self.roles = Roles(**denoisers)


def batch(size=6):
    g = torch.Generator().manual_seed(0)
    return torch.rand((size, *SHAPE), generator=g) * 2 - 1, torch.randint(3, (size,), generator=g)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("values", CASES)
def test_two_real_steps_move_the_student_and_nothing_else(values):
    config = objectives.parse(values)
    objective, trained = config.build(CONTEXT), Nets(config)
    student = trained.modules["student"]
    before = {role: [p.detach().clone() for p in net.parameters()] for role, net in trained.modules.items()}
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    x0, label = batch()
    for step in range(2):
        out = objective.loss(trained.roles, x0, label, step, generator(step))
        assert out.loss.shape == out.sigma.shape == (6,)
        assert out.loss.isfinite().all()
        assert (out.loss >= 0).all()
        assert (out.sigma > 0).all()
        assert not out.sigma.requires_grad
        optimizer.zero_grad()
        out.loss.mean().backward()
        gradients = [p.grad for p in student.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert any(g.abs().max() > 0 for g in gradients)
        optimizer.step()
    for role, net in trained.modules.items():
        moved = any(not torch.equal(a, b) for a, b in zip(before[role], net.parameters(), strict=True))
        assert moved == (role == "student"), role
        if role != "student":
            assert all(p.grad is None for p in net.parameters()), f"the {role} received a gradient"


@pytest.mark.parametrize("values", CASES)
def test_every_network_is_used_and_gets_the_label(values):
    config = objectives.parse(values)
    used = Nets(config)
    x0, label = batch()
    config.build(CONTEXT).loss(used.roles, x0, label, 0, generator())
    for role, calls in used.calls.items():
        assert len(calls) > 0, f"the {role} is never asked"
        assert all(seen is label for _, _, seen in calls.seen), role
        assert all(x.shape == x0.shape and sigma.shape == (6,) for x, sigma, _ in calls.seen)
    frozen = sum(len(calls) for role, calls in used.calls.items() if role != "student")
    assert config.frozen_forwards == frozen


@pytest.mark.parametrize("values", CASES)
def test_the_loss_is_a_function_of_the_generator(values):
    config = objectives.parse(values)
    objective, used = config.build(CONTEXT), Nets(config)
    x0, label = batch()
    torch.manual_seed(1)
    first = objective.loss(used.roles, x0, label, 0, generator(7))
    torch.manual_seed(2)
    again = objective.loss(used.roles, x0, label, 0, generator(7))
    other = objective.loss(used.roles, x0, label, 0, generator(8))
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(first.sigma, again.sigma)
    assert not torch.equal(first.sigma, other.sigma)


@pytest.mark.parametrize("values", CASES)
def test_the_features_of_the_distance_are_declared(values):
    config = objectives.parse(values)
    expected = distances.parse(values["distance"]).features if "distance" in values else None
    assert config.features == expected
    assert config.name in config.label


def test_the_bases_do_nothing_silently():
    with pytest.raises(TypeError, match="ObjectiveConfig does not define build"):
        ObjectiveConfig().build(CONTEXT)
    with pytest.raises(TypeError, match="Objective does not define loss"):
        Objective(CONTEXT).loss(Roles(lambda *a: a[0]), torch.zeros(1, *SHAPE), None, 0, generator())
