"""Pictures of the way to images: noisy states are brought into the range of images by their own spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exchange_files import CPU, made
from PIL import Image

from cmray.core.precond import to_pixels
from cmray.engine.drawing import Drawing
from cmray.engine.model import Model, load_model
from cmray.report.drawn import write_trajectory


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    net = {"name": "mlp", "width": 16, "depth": 1}
    return load_model(made(tmp_path_factory.mktemp("model"), net, (1, 8, 8), sigma_data=0.25), CPU)


def holds(picture: np.ndarray, image: torch.Tensor) -> int:
    """How often an image [1,8,8] is in a picture, enlarged."""
    large = to_pixels(image[None]).numpy()[0, 0].repeat(8, 0).repeat(8, 1)
    windows = np.lib.stride_tricks.sliding_window_view(picture, large.shape)
    return int((windows == large).all((2, 3)).sum())


def test_a_noisy_state_is_shown_at_the_spread_of_the_data(model, tmp_path):
    """x = x0 + sigma z has the spread sqrt(sigma_data^2 + sigma^2); shown is x sigma_data / that."""
    sampler, data = model.sampler(3, times=[80.0, 2.0, 0.1]), 0.25
    drawing = Drawing(Path("c"), model.weights, model.weights_sha256, sampler.model_dump(mode="json"), 7, 2, (1, 8, 8))
    write_trajectory(model, sampler, drawing, range(2), tmp_path / "t.png", "title")
    picture = np.asarray(Image.open(tmp_path / "t.png").convert("L"))
    moments, images = model.trajectory(sampler, range(7, 9))
    assert [m.sigma for m in moments] == pytest.approx([80, 2, 0.1])
    for sigma, noisy, said in moments:
        for k in range(2):
            assert holds(picture, noisy[k] * data / (sigma**2 + data**2) ** 0.5) == 1, sigma
            assert holds(picture, said[k].clamp(-1, 1)) >= 1
    start = moments[0].noisy * data / (80**2 + data**2) ** 0.5
    assert float(start.std()) == pytest.approx(data, rel=0.2)
    assert holds(picture, images[0].clamp(-1, 1)) >= 2, "at the end of both rows"
