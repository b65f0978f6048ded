"""The ADM U-Net against the reference implementation (openai/consistency_models), through its weights' names."""

import pytest
import torch
from reference_net import network

from cmray.nn.adm import ADMConfig
from cmray.nn.adm_state import from_openai, to_openai
from cmray.nn.layers import Sinusoids

pytestmark = pytest.mark.golden

CASES = ["uncond", "cond_updown"]


def asked(golden, case):
    """(numbers, c_noise, label) of one case; 1000 c_noise is the time that the reference was given."""
    numbers = {key: torch.from_numpy(value) for key, value in golden(f"d_unet_{case}.npz").items()}
    return numbers, (numbers["t"].double() / 1000).float(), numbers["y"] if case.startswith("cond") else None


@pytest.mark.parametrize("case", CASES)
def test_outputs(golden, case):
    net, _ = network(golden, case)
    numbers, c_noise, label = asked(golden, case)
    with torch.no_grad():
        out = net(numbers["x"], c_noise, label)
        torch.testing.assert_close(out, numbers["out"], rtol=0, atol=5e-5)
        small = net(numbers["x16"], c_noise[:2], None if label is None else label[:2])
        torch.testing.assert_close(small, numbers["out16"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients(golden, case):
    """Relative to the gradient's norm: 2e-5, where the reference's float32 differs from its float64 by 1e-5."""
    net, config = network(golden, case)
    numbers, c_noise, label = asked(golden, case)
    x = numbers["x"].requires_grad_()
    (net(x, c_noise, label) * numbers["w"]).sum().backward()
    grads = to_openai({name: p.grad for name, p in net.named_parameters()}, config)
    found = {"grad_x": x.grad, **{f"grad/{name}": grad for name, grad in grads.items()}}
    for key in (key for key in numbers if key.startswith("grad")):
        error = (found[key] - numbers[key]).norm() / numbers[key].norm()
        assert error < 2e-5, f"{key}: {error:.1e}"
    norms = golden("d_unet_meta.json")[case]["grad_norms"]
    assert set(norms) == set(grads)
    for name, norm in norms.items():
        assert grads[name].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-3), name


@pytest.mark.parametrize("dim", [32, 33])
def test_the_embedding_of_the_noise_level(golden, dim):
    numbers = golden("a_scalings.npz")
    c_noise = torch.from_numpy(numbers["sigma"]).log() / 4
    expected = torch.from_numpy(numbers[f"temb{dim}"])
    torch.testing.assert_close(Sinusoids(dim, scale=1000)(c_noise), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "options", "parameters"),
    [
        ("imagenet64", {}, 295_899_267),
        (
            "lsun256",
            {"channels": 256, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "scale_shift_norm": False},
            526_304_771,
        ),
    ],
)
def test_keys_and_shapes_of_the_published_networks(golden, case, options, parameters):
    meta = golden("d_real_config_keys.json")[case]
    size, config = meta["kwargs"]["image_size"], ADMConfig(**options)
    with torch.device("meta"):
        net = config.build((3, size, size), 1000 if meta["kwargs"]["class_cond"] else 0)
        theirs = {key: torch.empty(shape) for key, shape in meta["state_dict"].items()}
    assert sum(p.numel() for p in net.parameters()) == parameters == meta["n_params"]
    ours = {key: list(tensor.shape) for key, tensor in to_openai(net.state_dict(), config).items()}
    assert ours == meta["state_dict"]
    net.load_state_dict(from_openai(theirs, config), assign=True)
