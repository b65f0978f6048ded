"""From a rough painting to an image."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cmray.core.errors import CmrayError
from cmray.editing.base import Known, Levels, editing_tasks
from cmray.editing.holes import Holed

#: the paper's two noise levels, for images of PAPER_SIDE pixels a side
PAPER_LEVEL, PAPER_SECOND, PAPER_SIDE = 5.38, 2.24, 256
#: and the lowest that the first one is scaled down to: below, single pixels of small images show through
LEAST = 1.0


def default_level(side: int) -> float:
    """The paper's first level for images of `side` pixels: noise of level sigma hides what is below sigma pixels."""
    return max(LEAST, PAPER_LEVEL * side / PAPER_SIDE)


@editing_tasks.register("stroke")
class Stroke(Holed):
    """Noise hides the painting's details and the model paints new ones (SDEdit; Consistency Models, App. D).

    A = I. Omega is everything, or a hole outside of which the image stays as it is to the bit; either way noise is
    added around the whole painting. The paper's levels are 5.38 and 2.24 at 256 pixels.

    Args:
        level: where it starts. More noise gives a better image that follows the painting less.
    """

    has_truth: ClassVar[bool] = False

    level: float | None = Field(None, gt=0, description="first noise level; default 5.38 side / 256, at least 1")

    def check(self, shape: tuple[int, int, int]) -> None:
        if self.num_given > 1:
            raise CmrayError(f"stroke takes one of mask, box and word, found {self.num_given} of them")
        super().check(shape)

    def unknown(self, part: Tensor) -> Tensor:
        if not self.num_given:
            return super().unknown(part)
        return torch.from_numpy(self.hole(part.shape[2], part.shape[3])).to(part.device)

    def prepare(self, image: Tensor) -> Known:
        return Known(image, image, self.unknown(image), image)

    def schedules(
        self, levels: Levels, side: int, steps: int | None, of_consistency: bool, count: int
    ) -> list[list[float]]:
        top = self.level or default_level(side)
        if of_consistency and steps is None:
            second = top * PAPER_SECOND / PAPER_LEVEL
            return [[top, second] if second > levels.sigma_min else [top]]
        return [self.descending(levels, top, steps or 18, of_consistency)]
