"""More pixels for a small image."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from cmray.core.errors import CmrayError
from cmray.editing.base import editing_tasks
from cmray.editing.patches import OneDirection


@editing_tasks.register("superres")
class Superres(OneDirection):
    """Keeps the mean of every factor x factor patch, which is a pixel of the small image.

    A is an orthogonal matrix on the factor^2 values of a patch in one channel whose first row is (1/factor, ...); the
    first coefficient is known (Consistency Models, App. D).

    Args:
        factor: pixels of a patch's side; it divides the image's height and width.
    """

    factor: int = Field(4, ge=2, le=16, description="pixels of the result for one of the small image, along a side")

    def check(self, shape: tuple[int, int, int]) -> None:
        _, height, width = shape
        if height % self.factor or width % self.factor:
            fit = [n for n in range(2, 17) if height % n == 0 and width % n == 0]
            raise CmrayError(
                f"superres: factor {self.factor} does not divide the model's images of {height}x{width}; "
                f"use {', '.join(map(str, fit)) or 'another model'}"
            )

    def groups(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        p = self.factor
        cut = x.reshape(batch, channels, height // p, p, width // p, p).transpose(3, 4)
        return cut.reshape(batch, channels, height // p, width // p, p * p)

    def ungroup(self, groups: Tensor) -> Tensor:
        batch, channels, high, wide, _ = groups.shape
        p = self.factor
        return groups.reshape(batch, channels, high, wide, p, p).transpose(3, 4).reshape(batch, channels, high * p, -1)

    def direction(self) -> Tensor:
        return torch.full((self.factor**2,), 1 / self.factor)
