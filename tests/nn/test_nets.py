"""What every registered network promises, at every size that it accepts and with or without classes."""

import pytest
import torch

from cmray.nn import NetConfig, nets

#: Options that make a network small or reach a part of it that its defaults leave out. Others run with their defaults.
SONG = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "dropout": 0, "attention_resolutions": (4,)}
OPTIONS = {
    "adm": [
        {"channels": 64, "multipliers": (1, 1), "blocks": 1, "attention_resolutions": (4,), "head_width": 32},
        {"channels": 64, "multipliers": (1,), "blocks": 1, "heads": 4, "scale_shift_norm": False},
        {"channels": 64, "multipliers": (1, 1), "blocks": 1, "attention_resolutions": (8,), "resblock_updown": False},
    ],
    "ddpmpp": [SONG, {**SONG, "blocks": 2, "activation_checkpointing": True}],
    "ncsnpp": [SONG, {**SONG, "multipliers": (1,), "attention_resolutions": (8,), "fourier_scale": 0.5}],
    "mlp": [{"width": 16, "depth": 2}, {"width": 8, "depth": 1}],
    "unet": [
        {"channels": 8, "multipliers": (1, 2), "attention_levels": (1,), "head_width": 8},
        {"channels": 4, "multipliers": (1, 3, 2), "blocks": 2},
        {"channels": 8, "multipliers": (1,), "attention_levels": (0,)},
    ],
}
CASES = [
    pytest.param({"name": name, **options}, id=f"{name}-{i}")
    for name in nets.names()
    for i, options in enumerate(OPTIONS.get(name, [{}]))
]
SHAPES = [(3, 7, 5), (1, 8, 8), (4, 9, 16), (1, 4, 13), (3, 6, 4), (3, 8, 4)]


def fits(values, shape):
    try:
        nets.parse(values).check(shape)
    except ValueError:
        return False
    return True


def odd_shape(values):
    """An image of three channels that is not square, with sides as odd as the network allows."""
    return next(shape for shape in SHAPES if shape[0] == 3 and fits(values, shape))


FITTING = [
    pytest.param(case.values[0], shape, id=f"{case.id}-{shape}")
    for case in CASES
    for shape in SHAPES
    if fits(case.values[0], shape)
]


def inputs(shape, batch=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *shape), generator=g), torch.randn(batch, generator=g)


def randomised(values, shape, num_classes=0):
    """The network with noise on every parameter, because a fresh one answers zero."""
    net = nets.parse(values).build(shape, num_classes)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    return net


@pytest.mark.parametrize(("values", "shape"), FITTING)
def test_the_output_has_the_shape_of_the_input_and_is_zero_at_the_start(values, shape):
    x, c_noise = inputs(shape)
    for num_classes, label in ((0, None), (5, torch.tensor([0, 4, 2]))):
        out = nets.parse(values).build(shape, num_classes)(x, c_noise, label)
        assert out.shape == x.shape
        assert torch.equal(out, torch.zeros_like(x))
        out = randomised(values, shape, num_classes)(x, c_noise, label)
        assert out.shape == x.shape
        assert out.isfinite().all()
        assert out.std() > 1e-3


@pytest.mark.parametrize("values", CASES)
def test_noise_level_and_image_change_the_output_and_samples_do_not_see_each_other(values):
    shape = odd_shape(values)
    x, c_noise = inputs(shape)
    net = randomised(values, shape)
    out = net(x, c_noise, None)
    assert not torch.allclose(net(x, c_noise + 0.1, None), out, atol=1e-4)
    assert not torch.allclose(net(x + 0.1 * x.roll(1, -1), c_noise, None), out, atol=1e-4)
    for i in range(len(x)):
        torch.testing.assert_close(net(x[i : i + 1], c_noise[i : i + 1], None), out[i : i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("values", CASES)
def test_the_class_changes_the_output_and_is_required(values):
    x, c_noise = inputs((1, 8, 8))
    net = randomised(values, (1, 8, 8), num_classes=3)
    outs = [net(x, c_noise, torch.full((3,), label)) for label in range(3)]
    assert not torch.allclose(outs[0], outs[1], atol=1e-3)
    assert not torch.allclose(outs[1], outs[2], atol=1e-3)
    mixed = net(x, c_noise, torch.arange(3))
    for i in range(3):
        torch.testing.assert_close(mixed[i], outs[i][i], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="class-conditional and needs labels"):
        net(x, c_noise, None)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("values", CASES)
def test_the_gradient_reaches_every_parameter_within_three_steps(values, num_classes):
    """Branches start at zero: step 1 moves the output layer, step 2 the ends of the branches, step 3 all of them."""
    shape = odd_shape(values)
    x, c_noise = inputs(shape, batch=6)
    label = torch.arange(6) % 3 if num_classes else None
    net = nets.parse(values).build(shape, num_classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    target = x.flip(0)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (net(x, c_noise, label) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    without = [n for n, p in net.named_parameters() if p.grad is None or not (p.grad.abs() > 0).any()]
    assert not without, f"no gradient: {without}"
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("values", CASES)
def test_it_is_a_function_without_hidden_state_or_randomness(values):
    x, c_noise = inputs((1, 8, 8))
    net = randomised(values, (1, 8, 8))
    torch.manual_seed(1)
    first = net(x, c_noise, None)
    torch.manual_seed(2)
    assert torch.equal(net(x, c_noise, None), first)
    copy = nets.parse(values).build((1, 8, 8), 0)
    copy.load_state_dict(net.state_dict())
    assert torch.equal(copy(x, c_noise, None), first)


def test_the_base_config_builds_nothing():
    with pytest.raises(TypeError, match="NetConfig does not define build"):
        NetConfig().build((1, 8, 8), 0)
