"""Pictures of images that were drawn for somebody: a grid of them, or the way to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from cmray.config.run import RunConfig
from cmray.core.precond import to_pixels
from cmray.engine.drawing import Drawing, Parts
from cmray.engine.model import Model
from cmray.report.grids import image_grid
from cmray.report.trajectory import Level, animation, strip
from cmray.samplers import Moment, Sampler

#: pixels of a cell at least, for its caption
_CELL = 48


def write_grid(parts: Parts, path: Path, title: str) -> None:
    """A PNG of all images with the seed under each, and its label."""
    drawing = parts.drawing
    images = np.concatenate([pixels for _, pixels in parts.read()])
    image_grid(
        images,
        path,
        columns=max(1, round(len(images) ** 0.5)),
        scale=max(1, _CELL // images.shape[-1]),
        captions=list(_names(drawing, range(drawing.count))),
        title=title,
    )


def write_trajectory(model: Model, sampler: Sampler, drawing: Drawing, places: range, path: Path, title: str) -> None:
    """The way to some images of a drawing: FILE.gif is an animation, FILE.png a strip with a title."""
    given = drawing.given(places)
    labels = None if given is None else torch.tensor(given, dtype=torch.int64)
    moments, images = model.trajectory(sampler, drawing.seeds(places), labels)
    levels = levels_of(model.run, moments)
    names, pixels = list(_names(drawing, places)), to_pixels(images).numpy()
    if path.suffix.lower() == ".gif":
        animation(levels, pixels, path, names)
    else:
        strip(levels, pixels, path, [f"seed {name}" for name in names], title)


def levels_of(run: RunConfig, moments: Sequence[Moment]) -> list[Level]:
    """A trajectory in pixels, noisy states with their noise brought down to the range of images."""
    data = run.noise.sigma_data or 0.5

    def in_range(x: torch.Tensor, sigma: float) -> np.ndarray:
        return to_pixels(x * data / (sigma**2 + data**2) ** 0.5).numpy()

    return [(m.sigma, in_range(m.noisy, m.sigma), to_pixels(m.said).numpy()) for m in moments]


def _names(drawing: Drawing, places: range) -> Iterator[str]:
    """A caption for each image: its seed, and its label."""
    labels = drawing.label_of(places)
    for i, seed in enumerate(drawing.seeds(places)):
        yield f"{seed}" if labels is None else f"{seed} · {labels[i]}"
