"""One vector holds the parameters and the gradients; the module sees it and nothing else."""

import pytest
import torch
from torch import nn

from cmray.engine.flat import FlatModule


def net(seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_parameters_and_gradients_are_views_in_both_directions():
    plain, module = net(), net()
    flat = FlatModule(module, trained=True)
    assert flat.params.numel() == sum(p.numel() for p in plain.parameters())
    for a, b in zip(plain.parameters(), module.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(5, 3)
    plain(x).square().sum().backward()
    module(x).square().sum().backward()
    expected = torch.cat([p.grad.reshape(-1) for p in plain.parameters()])
    assert torch.equal(flat.params.grad, expected)
    module(x).square().sum().backward()
    assert torch.equal(flat.params.grad, 2 * expected), "gradients accumulate in place"
    torch.optim.SGD([flat.params], lr=1.0).step()
    moved = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    assert torch.equal(moved, flat.params.detach())
    with torch.no_grad():
        next(module.parameters()).fill_(7)
    assert (flat.params[:12] == 7).all()


def test_an_untrained_module_makes_no_gradients():
    flat = FlatModule(net(), trained=False)
    assert flat.params.grad is None
    assert not flat.module(torch.randn(2, 3)).requires_grad


def test_named_tensors_own_their_memory_and_load_back():
    a, b = FlatModule(net(0), trained=True), FlatModule(net(1), trained=False)
    named = a.named(a.params)
    assert list(named) == [name for name, _ in a.module.named_parameters()]
    named_before = {k: v.clone() for k, v in named.items()}
    a.params.data.zero_()
    assert all(torch.equal(named[k], named_before[k]) for k in named)
    b.load(named)
    assert all(torch.equal(p, named[k]) for k, p in b.module.named_parameters())
    into = torch.zeros_like(b.params.data)
    b.load(named, into=into)
    assert torch.equal(into, b.params.data)


def test_another_networks_tensors_are_refused():
    flat = FlatModule(net(), trained=True)
    named = flat.named(flat.params)
    with pytest.raises(KeyError, match="parameter names differ"):
        flat.load({k: v for k, v in named.items() if k != "0.bias"})
    with pytest.raises(ValueError, match=r"0.bias has shape \[5\], the network needs \[4\]"):
        flat.load({**named, "0.bias": torch.zeros(5)})
    with pytest.raises(TypeError, match="float32"):
        FlatModule(net().double(), trained=True)
