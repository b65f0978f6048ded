"""On the way from one image to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cmray.core.errors import CmrayError
from cmray.core.precond import expand
from cmray.core.rng import SampleNoise
from cmray.editing.base import EditingTask, Known, Levels, Row, editing_tasks
from cmray.editing.stroke import default_level


@editing_tasks.register("interpolate")
class Interpolate(EditingTask):
    """f(sigma_max slerp(z_a, z_b; alpha), sigma_max) for alpha from 0 to 1 (Consistency Models, App. D).

    Without images the ends are samples of two seeds, to the bit those of the sampler with the same levels; of a
    class-conditional model where a label is given, or both seeds draw the same. Between two images, which have no
    noise of their own, each is hidden by noise of `level` first: images are mixed linearly,
    noise on the sphere. A = I, all is unknown.

    Args:
        between: the two seeds; by default the seed that is asked for and the next. Equal ones suit images.
        frames: images on the way, both ends included.
        level: where it starts; by default sigma_max between seeds and stroke's level between images.
    """

    has_truth: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False
    default_num: ClassVar[int] = 1

    between: tuple[int, int] | None = Field(None, description="two seeds")
    frames: int = Field(9, ge=2, le=1000, description="images on the way, both ends included")
    level: float | None = Field(None, gt=0, description="noise level it starts from")

    @model_validator(mode="after")
    def _seeds(self) -> Self:
        if self.between is not None and not all(0 <= seed < 2**63 for seed in self.between):
            raise ValueError(f"between is {self.between}; seeds are 0 or more and below 2^63")
        return self

    def prepare(self, image: Tensor) -> Known:
        """A known part per frame, from two images, or none: [0,C,H,W]."""
        alphas = torch.linspace(0, 1, self.frames, device=image.device)
        if len(image) == 0:
            mixed = image.new_zeros(self.frames, *image.shape[1:])
        else:
            a, b = image
            mixed = torch.lerp(a.expand(self.frames, *a.shape), b.expand(self.frames, *b.shape), expand(alphas, image))
        return Known(mixed, mixed, self.unknown(mixed), mixed)

    def schedules(
        self, levels: Levels, side: int, steps: int | None, of_consistency: bool, count: int
    ) -> list[list[float]]:
        top = self.level or (default_level(side) if count else levels.sigma_max)
        return [self.descending(levels, top, steps or (1 if of_consistency else 18), of_consistency)]

    def rows(self, count: int, num: int, seed: int) -> list[Row]:
        if count not in (0, 2):
            raise CmrayError(f"interpolate goes from one image to another, or from seed to seed; found {count} images")
        if self.between and num > 1:
            raise CmrayError(f"interpolate has one way between two seeds, not {num}")
        ways = [self.between] if self.between else [(seed + j, seed + j + 1) for j in range(num)]
        alphas = torch.linspace(0, 1, self.frames).tolist()
        return [Row(j, k, a, b, alpha) for j, (a, b) in enumerate(ways) for k, alpha in enumerate(alphas)]

    def noise(self, rows: Sequence[Row], shape: Sequence[int], device: torch.device) -> SampleNoise:
        return Between(rows, shape, device)


class Between(SampleNoise):
    """Noise on the way from a row's `seed` (alpha 0) to its `seed_to` (alpha 1), at every draw."""

    def __init__(self, rows: Sequence[Row], shape: Sequence[int], device: torch.device | str = "cpu"):
        super().__init__([row.seed for row in rows], shape, device)
        self._to = SampleNoise([row.seed if row.seed_to is None else row.seed_to for row in rows], shape, device)
        self._alpha = torch.tensor([row.alpha for row in rows], dtype=torch.float64, device=device)

    def integers(self, high: int) -> Tensor:
        """The label that both ends of each way draw. Raises CmrayError when they draw different ones."""
        at, to = super().integers(high), self._to.integers(high)
        if (at != to).any():
            row = int((at != to).nonzero()[0])
            raise CmrayError(
                f"a way between seeds has one class, but the two ends draw {int(at[row])} and {int(to[row])}; "
                f"say which class it has"
            )
        return at

    def draw(self) -> Tensor:
        return slerp(super().draw(), self._to.draw(), self._alpha)


def slerp(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """sin((1 - alpha) psi) / sin(psi) a + sin(alpha psi) / sin(psi) b, psi the angle between a and b.

    Independent unit noise stays about unit noise on the way. The ends are a and b to the bit; where they are parallel
    it is their straight line.

    Args:
        a, b: float32 [B,...], none of them zero.
        alpha: float64 [B] in [0, 1].
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = (flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))
    psi = torch.arccos(cosine.clamp(-1, 1))
    parallel = psi.sin() < 1e-6
    safe = torch.where(parallel, torch.ones_like(psi), psi)
    near = torch.where(parallel, 1 - alpha, ((1 - alpha) * safe).sin() / safe.sin())
    far = torch.where(parallel, alpha, (alpha * safe).sin() / safe.sin())
    return (expand(near, a) * a + expand(far, b) * b).to(a.dtype)
