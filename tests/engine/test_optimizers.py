"""Optimizers over one flat vector: torch's numbers, and going on from a checkpoint."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cmray.config.run import OptimizerConfig
from cmray.engine import optimizers
from cmray.engine.optimizers import make_optimizer

NAMES = ["radam", "adam", "adamw"]


def parameter(count: int, seed: int = 0) -> nn.Parameter:
    p = nn.Parameter(torch.randn(count, generator=torch.Generator().manual_seed(seed)))
    p.grad = torch.zeros(count)
    return p


def gradient(p: nn.Parameter, step: int) -> None:
    noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 + step))
    p.grad.copy_((p.detach() - 0.3) * 0.1 + 0.05 * noise)


def torchs(config: OptimizerConfig, p: nn.Parameter) -> torch.optim.Optimizer:
    known = {"lr": 0.0, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.name == "radam":
        return torch.optim.RAdam([p], **known, decoupled_weight_decay=True)
    return (torch.optim.Adam if config.name == "adam" else torch.optim.AdamW)([p], **known, fused=True)


@given(
    name=st.sampled_from(NAMES),
    betas=st.sampled_from([(0.9, 0.999), (0.9, 0.99), (0.0, 0.95), (0.5, 0.0), (0.9, 0.5)]),
    decay=st.sampled_from([0.0, 0.1]),
    count=st.sampled_from([1, 7, 64, 65, 200]),
)
@settings(max_examples=40, deadline=None)
def test_every_step_is_torchs(name, betas, decay, count):
    """Whole vectors and in chunks, through RAdam's first steps and beyond, with a learning rate that changes."""
    config = OptimizerConfig(name=name, betas=betas, weight_decay=decay)
    mine, theirs = parameter(count), parameter(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "CPU_CHUNK", 64)
        optimizer = make_optimizer(config, mine)
    reference = torchs(config, theirs)
    for step in range(12):
        lr = 0.02 / (1 + step)
        gradient(mine, step)
        gradient(theirs, step)
        optimizer.step(lr)
        reference.param_groups[0]["lr"] = lr
        reference.step()
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-6)
    state = reference.state[theirs]
    torch.testing.assert_close(optimizer.exp_avg, state["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(optimizer.exp_avg_sq, state["exp_avg_sq"], rtol=1e-5, atol=1e-9)
    assert optimizer.steps == state["step"] == 12


@pytest.mark.parametrize("name", NAMES)
def test_a_step_leaves_the_gradient_and_makes_no_graph(name):
    p = parameter(9)
    optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.5), p)
    gradient(p, 0)
    kept = p.grad.clone()
    optimizer.step(0.1)
    assert torch.equal(p.grad, kept)
    assert p.is_leaf
    assert p.requires_grad
    assert not optimizer.exp_avg.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_going_on_from_a_state_is_never_having_stopped(name):
    whole, parts = parameter(50), parameter(50)
    config = OptimizerConfig(name=name)
    one, other = make_optimizer(config, whole), make_optimizer(config, parts)
    for step in range(10):
        if step == 7:
            saved = {key: value.clone() for key, value in other.state().items()}
            assert set(saved) == {"step", "exp_avg", "exp_avg_sq"}
            other = make_optimizer(config, parts)
            other.load(saved)
        for optimizer in (one, other):
            gradient(optimizer.params, step)
            optimizer.step(0.01)
    assert torch.equal(whole, parts)
    other.load({})
    assert other.steps == 0
    assert not other.exp_avg.any()
    assert not other.exp_avg_sq.any()


def test_the_state_of_another_network_is_refused():
    optimizer = make_optimizer(OptimizerConfig(), parameter(5))
    other = make_optimizer(OptimizerConfig(), parameter(6)).state()
    with pytest.raises(ValueError, match="exp_avg has 6 numbers, the network has 5"):
        optimizer.load(other)
    with pytest.raises(KeyError, match="exp_avg"):
        optimizer.load({"step": torch.tensor(1.0)})


def test_training_does_not_load_the_compiler():
    """torch's own optimizers import it: seconds in every new process."""
    code = (
        "import sys, torch; from torch import nn; from cmray.config.run import OptimizerConfig\n"
        "from cmray.engine.optimizers import make_optimizer\n"
        "for name in ('radam', 'adam', 'adamw'):\n"
        "    p = nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)\n"
        "    make_optimizer(OptimizerConfig(name=name), p).step(1.0)\n"
        "assert (p != 1).all()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
