"""A file of openai/consistency_models, imported by the command, gives the reference's outputs."""

from __future__ import annotations

import json

import pytest
import torch
from cli_run import good, here
from reference_net import weights

from cmray.core.precond import BoundaryPrecond
from cmray.engine.model import load_model
from cmray.exchange import sources
from cmray.nn.adm import ADMConfig

pytestmark = pytest.mark.golden

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def imported(golden, tmp_path_factory):
    """case -> the checkpoint that the command made of it."""
    folder = tmp_path_factory.mktemp("imported")
    meta = golden("d_unet_meta.json")
    out = {}
    for case in ("uncond", "cond_updown"):
        torch.save(weights(meta[case]["state_dict"]), folder / f"{case}.pt")
        good(
            here(
                "import", "openai", folder / f"{case}.pt", "--out", folder / case, "--image-size", 32,
                "--objective", "ct", "--net", "{head_width: 32}",
            )
        )  # fmt: skip
        out[case] = folder / case
    return out


@pytest.mark.parametrize("case", ["uncond", "cond_updown"])
def test_networks_compute_what_the_reference_does(golden, imported, case):
    numbers = {key: torch.from_numpy(value) for key, value in golden(f"d_unet_{case}.npz").items()}
    net = load_model(imported[case], CPU).net
    label = numbers["y"] if case == "cond_updown" else None
    with torch.no_grad():
        out = net(numbers["x"], (numbers["t"].double() / 1000).float(), label)
    torch.testing.assert_close(out, numbers["out"], rtol=0, atol=5e-5)


def test_samples_are_those_of_the_reference(golden, imported):
    numbers = golden("f_samplers.npz")
    model = load_model(imported["cond_updown"], CPU)
    assert model.denoise.precond == BoundaryPrecond(0.5, 0.002)

    left = [torch.from_numpy(z) for z in numbers["noise"]]

    class Given:
        def draw(self):
            return left.pop(0)

    sampler = model.sampler(1, name="one-step")
    x = sampler.sample(model.denoise, Given(), torch.from_numpy(numbers["y"])).clamp(-1, 1)
    torch.testing.assert_close(x, torch.from_numpy(numbers["onestep"]), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("name", "size"), [("imagenet64", 64), ("lsun256", 256)])
def test_the_published_networks_are_recognised(golden, tmp_path, monkeypatch, name, size):
    """By keys and shapes alone: their weights are not here, and a gigabyte of zeros would take the place of them."""
    from cmray.exchange.adm_keys import recognised

    meta = golden("d_real_config_keys.json")[name]
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in meta["state_dict"].items()}
    fields, shape, classes, order = recognised(state, None, tmp_path)
    assert shape == (3, size, size)
    assert order == "thirds"
    assert classes == (1000 if name == "imagenet64" else 0)
    config = sources.get("openai")().config(fields, tmp_path)
    if name == "imagenet64":
        assert config == ADMConfig(class_conditional=True)
    with torch.device("meta"):
        assert sum(p.numel() for p in config.build(shape, classes).parameters()) == meta["n_params"]
    assert json.dumps(config.architecture())
