"""Taking noise of a known level away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from cmray.core.rng import SampleNoise
from cmray.editing.base import EditingTask, Known, Levels, Row, editing_tasks

#: about those of the paper's ladder, from hardly seen to nothing else
LADDER = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 80.0)


@editing_tasks.register("denoise")
class DenoiseImage(EditingTask):
    """f(y + sigma z, sigma) for each of several levels sigma (Consistency Models, App. D). A = I, all is unknown.

    Args:
        level: noise levels; by default a ladder from 0.1 to 80, as far as the model knows them.
        noisy: the images carry noise of the level already, none is added.
    """

    default_num: ClassVar[int] = 1

    level: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, min_length=1, description="noise levels; default a ladder from 0.1 to 80"
    )
    noisy: bool = Field(False, description="the input carries the noise of the level already")

    @field_validator("level", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("level")
    @classmethod
    def _distinct(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and len({f"{level:g}" for level in value}) < len(value):
            raise ValueError(f"found the same noise level twice: {', '.join(f'{level:g}' for level in value)}")
        return value

    def prepare(self, image: Tensor) -> Known:
        return Known(image, image, self.unknown(image), image)

    def seen(self, known: Known, noise: SampleNoise, sigma: float) -> Tensor:
        return known.image + sigma * noise.draw()

    def schedules(
        self, levels: Levels, side: int, steps: int | None, of_consistency: bool, count: int
    ) -> list[list[float]]:
        chosen = self.level or [t for t in LADDER if levels.sigma_min < t <= levels.sigma_max]
        return [self.descending(levels, t, steps or 1, of_consistency) for t in chosen]

    def noise(self, rows: Sequence[Row], shape: Sequence[int], device: torch.device) -> SampleNoise:
        return (
            _LaterOnly([row.seed for row in rows], shape, device) if self.noisy else super().noise(rows, shape, device)
        )


class _LaterOnly(SampleNoise):
    """No noise at the first draw, which would be added to images that have it; as usual from the second on."""

    _drawn = False

    def draw(self) -> Tensor:
        z = super().draw()
        first, self._drawn = not self._drawn, True
        return torch.zeros_like(z) if first else z
