"""A Gaussian mixture as images: a dataset whose law is known, with any size and number of classes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from cmray.core.rng import numpy_generator
from cmray.datasets.base import DatasetConfig, datasets
from cmray.datasets.source import ArraySource


@datasets.register("blobs")
class Blobs(DatasetConfig):
    """x = m_k + spread z, cut at [-1, 1] and rounded to 8 bits; m_k one bright blob at a place of its own.

    Every pixel of class k is normal around m_k, up to the cut: what a model has learned can be compared with the truth.
    """

    embedded: ClassVar[bool] = True  # it needs no files, so a run may say data: {name: blobs}

    classes: int = Field(4, ge=1, description="blobs, on a circle around the middle")
    count: int = Field(1_024, ge=1)
    side: int = Field(8, ge=4, description="pixels")
    spread: float = Field(0.15, ge=0, description="standard deviation of a pixel around its class's mean")
    seed: int = Field(0, ge=0)

    def means(self) -> np.ndarray:
        """m_k, float64 [classes, side, side] in [-1, 1]."""
        angle = 2 * np.pi * np.arange(self.classes) / self.classes
        middle, radius = (self.side - 1) / 2, self.side / 4
        y, x = np.mgrid[: self.side, : self.side]
        from_y = y - (middle + radius * np.sin(angle))[:, None, None]
        from_x = x - (middle + radius * np.cos(angle))[:, None, None]
        return 2 * np.exp(-(from_y**2 + from_x**2) / (2 * (self.side / 8) ** 2)) - 1

    def open(self) -> ArraySource:
        generator = numpy_generator("blobs", self.seed)
        labels = np.arange(self.count, dtype=np.int64) % self.classes
        noise = generator.standard_normal((self.count, self.side, self.side))
        x = (self.means()[labels] + self.spread * noise).clip(-1, 1)
        return ArraySource(
            name="blobs",
            split="all",
            origin=f"a mixture of {self.classes} Gaussians, seed {self.seed}",
            classes=tuple(f"blob {k}" for k in range(self.classes)),
            images=np.rint((x + 1) * 127.5).astype(np.uint8)[:, None],
            labels=labels,
        )
