"""What every registered objective promises, with every registered distance that it can use."""

import pytest
import torch
from gaussian_truth import Calls
from pydantic import ValidationError

from cmray.core.distances import distances
from cmray.core.errors import CmrayError
from cmray.core.precond import Denoiser, make_precond
from cmray.nn import nets
from cmray.objectives import Objective, ObjectiveConfig, ObjectiveContext, Roles, objectives

SHAPE = (1, 8, 8)  # what the digits features take
CONTEXT = ObjectiveContext(
    sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=0.5, steps=2, device=torch.device("cpu")
)


def marks(distance):
    """A distance that lacks a file on this machine is skipped, with what `check` says."""
    try:
        if distance:
            distances.parse(distance).check(SHAPE)
    except CmrayError as error:
        return [pytest.mark.skip(reason=str(error))]
    return []


#: choices that change which networks are asked, and how
CHOICES = {"cd-continuous": [{"theta_minus": "student"}], "cd": [{"mu": 0}], "ct": [{"mu": 0}]}


def refused(values):
    """Whether the objective is a limit that needs a second derivative which the distance does not have."""
    if "distance" not in values or not objectives.get(values["name"]).needs_jvp:
        return False
    theorem_4 = values.get("theta_minus") == "student" and values["distance"] == "l1"
    return not distances.parse(values["distance"]).is_smooth and not theorem_4


def combinations():
    """Every objective, with its own distance and with every other, and with the choices above."""
    for name in objectives.names():
        with_distance = "distance" in objectives.get(name).model_fields
        for choice in [{}, *CHOICES.get(name, [])]:
            for distance in [None, *distances.names()] if with_distance else [None]:
                yield {"name": name, **choice} | ({"distance": distance} if distance else {})


def cases(allowed):
    for values in combinations():
        if allowed != refused(values):
            why = marks(values.get("distance")) if allowed else []
            yield pytest.param(values, id="-".join(map(str, values.values())), marks=why)


CASES, REFUSED = list(cases(allowed=True)), list(cases(allowed=False))


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
    assert config.frozen_forwards == sum(calls.frozen_forwards for calls in used.calls.values())
    for role, calls in used.calls.items():
        assert role == "student" or calls.frozen_forwards == len(calls), f"the {role} is asked with gradients"


@pytest.mark.parametrize("values", REFUSED)
def test_the_limits_refuse_distances_without_the_derivative_they_need(values):
    words = rf"distance\.name is {values['distance']}, .* but objective\.name is {values['name']}"
    with pytest.raises(ValidationError, match=words):
        objectives.parse(values)


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
    distance = getattr(config, "distance", None)
    assert "distance" not in values or distance.name == values["distance"]
    assert config.features == (None if distance is None else distance.features)
    assert config.name in config.label


def test_the_bases_do_nothing_silently():
    with pytest.raises(TypeError, match="ObjectiveConfig does not define build"):
        ObjectiveConfig().build(CONTEXT)
    with pytest.raises(TypeError, match="Objective does not define loss"):
        Objective(CONTEXT).loss(Roles(lambda *a: a[0]), torch.zeros(1, *SHAPE), None, 0, generator())
