"""Whole sampling runs of the reference, from its noise and with its network's weights in ours."""

from __future__ import annotations

import pytest
import torch
from reference_net import network

from cmray.core.grids import karras_sigmas
from cmray.core.precond import BoundaryPrecond, Denoiser, EDMPrecond
from cmray.samplers import samplers

pytestmark = pytest.mark.golden


class Given:
    """Recorded noise in the place of seeds."""

    def __init__(self, noise):
        self.left = [torch.from_numpy(z) for z in noise]

    def draw(self):
        return self.left.pop(0)


@pytest.fixture(scope="module")
def net(golden):
    return network(golden, "cond_updown")[0].eval().requires_grad_(False)


GRID = karras_sigmas(18, 0.002, 80.0).tolist()
FORTY = karras_sigmas(40, 0.002, 80.0)[::-1].tolist()
DENOISER, CONSISTENCY = EDMPrecond(0.5), BoundaryPrecond(0.5, 0.002)

CASES = {
    "heun18": ({"name": "edm-heun", "sigmas": GRID}, DENOISER, 2e-4),
    "euler18": ({"name": "euler", "sigmas": GRID}, DENOISER, 2e-4),
    "ddim18": ({"name": "ddim", "sigmas": GRID}, DENOISER, 2e-4),
    "onestep": ({"name": "one-step", "sigmas": [80.0]}, CONSISTENCY, 2e-5),
    "multistep_0-22-39_of40": ({"name": "multistep", "sigmas": [FORTY[22], FORTY[0]]}, CONSISTENCY, 2e-5),
}


@pytest.mark.parametrize("case", CASES)
def test_samples_are_those_of_the_reference(golden, net, case):
    spec, precond, atol = CASES[case]
    numbers, reference = golden("f_samplers.npz"), case.replace("ddim", "euler")
    sampler = samplers.parse(spec | {"clip_denoised": True})
    x = sampler.sample(Denoiser(net, precond), Given(numbers["noise"]), torch.from_numpy(numbers["y"])).clamp(-1, 1)
    torch.testing.assert_close(x, torch.from_numpy(numbers[reference]), rtol=0, atol=atol)
    pixels = ((x + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1)  # truncated there, rounded in our to_pixels
    off = (pixels.int() - torch.from_numpy(numbers[f"{reference}/uint8"]).int()).abs()
    assert off.max() <= 1
    assert (off > 0).float().mean() < 0.005, "more than values at the edge of a level differ"
    told = golden("f_samplers_meta.json")[reference]
    assert sampler.nfe == told["nfe"]
