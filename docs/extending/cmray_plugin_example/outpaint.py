"""Painting around an image: the inverse of inpainting."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from cmray.core.errors import CmrayError
from cmray.editing.base import EditingTask, editing_tasks


@editing_tasks.register("outpaint")
class Outpaint(EditingTask):
    """Keeps the middle to the bit and lets the model paint a border of `margin` pixels. A = I, Omega is the border."""

    margin: int = Field(2, ge=1, description="pixels on each side that the model paints")

    def check(self, shape: tuple[int, int, int]) -> None:
        if 2 * self.margin >= min(shape[1:]):
            sides = "x".join(map(str, shape[1:]))
            raise CmrayError(f"outpaint: margin {self.margin} leaves nothing of images of {sides}; give a smaller one")

    def unknown(self, part: Tensor) -> Tensor:
        border = torch.ones(part.shape[2:], dtype=torch.bool, device=part.device)
        border[self.margin : -self.margin, self.margin : -self.margin] = False
        return border
