"""Colours for a gray image."""

from __future__ import annotations

import torch
from torch import Tensor

from cmray.core.errors import CmrayError
from cmray.editing.base import editing_tasks
from cmray.editing.patches import OneDirection

#: luma of ITU-R 601, as Pillow makes colours gray; the paper rounds to 0.2989, 0.5870, 0.1140
LUMA = (0.299, 0.587, 0.114)


@editing_tasks.register("colorize")
class Colorize(OneDirection):
    """Keeps the luma of every pixel and lets the model choose its colour.

    A is an orthogonal matrix on the three channels whose first row is LUMA / |LUMA|; the first coefficient is known
    (Consistency Models, App. D). An image that is gray already has its own values as luma.
    """

    def check(self, shape: tuple[int, int, int]) -> None:
        if shape[0] != 3:
            raise CmrayError(
                f"colorize needs a model of images with 3 channels; this one makes {'x'.join(map(str, shape))}"
            )

    def groups(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)

    def ungroup(self, groups: Tensor) -> Tensor:
        return groups.movedim(-1, 1).contiguous()

    def direction(self) -> Tensor:
        luma = torch.tensor(LUMA)
        return luma / luma.norm()

    def shown(self, image: Tensor, y: Tensor) -> Tensor:
        # A^-1 of the luma alone lies along LUMA, which is green; a person expects gray
        return torch.einsum("bchw,c->bhw", image, torch.tensor(LUMA).to(image))[:, None].expand_as(image).contiguous()
