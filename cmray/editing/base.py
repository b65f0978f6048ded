"""What an editing task is: which part of an image is known, in coordinates that a task chooses.

Algorithm 4 of Consistency Models is Algorithm 1 with two changes: noise is added around the known image y, not around
zero, and project(f(x, t)) stands in the place of f(x, t). So the loop is the sampler's, and a task is an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cmray.core.errors import CmrayError
from cmray.core.grids import karras_sigmas
from cmray.core.precond import Denoise
from cmray.core.registry import ComponentConfig, Registry
from cmray.core.rng import SampleNoise
from cmray.samplers import Sampler

editing_tasks: Registry[Any] = Registry("editing task", ["cmray.editing"])

#: levels of the default schedule, the paper's N for editing
STEPS = 40


@dataclass(frozen=True)
class Levels:
    """The noise levels a model knows: 0 < sigma_min < sigma_max, and the rho of its Karras grids."""

    sigma_min: float
    sigma_max: float
    rho: float = 7.0

    def descending(self, steps: int, top: float | None = None) -> list[float]:
        """`steps` levels of a Karras grid from `top` (sigma_max). sigma_min is left out: f changes nothing there.

        Raises CmrayError when there is nothing between sigma_min and `top`.
        """
        if top is not None and not self.sigma_min < top <= self.sigma_max:
            raise self.out_of_range([top])
        grid = karras_sigmas(steps + 1, self.sigma_min, top or self.sigma_max, self.rho)
        return grid[:0:-1].tolist()

    def out_of_range(self, found: Sequence[float]) -> CmrayError:
        """What to say of noise levels that the model does not know, or at which it changes nothing."""
        return CmrayError(
            f"noise levels must be above sigma_min {self.sigma_min:g} and at most sigma_max {self.sigma_max:g}, "
            f"found {', '.join(f'{t:g}' for t in found)}"
        )


@dataclass(frozen=True)
class Known:
    """What is known of a batch of images. Rows are independent of each other.

    Args:
        image: y, float32 [B,C,H,W] in [-1, 1], the unknown part set to 0 (first line of Algorithm 4); noise is added
            around it.
        part: A y, the known coefficients where `unknown` is False.
        unknown: Omega, bool, broadcasts over `part`; True where the model decides.
        shown: what a person is shown as the degraded image, [B,C,H,W].
    """

    image: Tensor
    part: Tensor
    unknown: Tensor
    shown: Tensor

    def rows(self, index: Sequence[int]) -> Known:
        """The known parts of some of the images, in any order and number."""
        taken: dict[str, Tensor] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            taken[each.name] = value if each.name == "unknown" else value[list(index)]
        return replace(self, **taken)

    def to(self, device: torch.device) -> Known:
        return replace(self, **{each.name: getattr(self, each.name).to(device) for each in fields(self)})


class EditingTask(ComponentConfig):
    """An orthogonal transform A and a mask Omega of unknown coefficients (Consistency Models, Alg. 4).

    The defaults are A = I and everything unknown. A contract test runs over the registry: A keeps lengths, its inverse
    is one, the projection is idempotent, and the known part of an edited image equals the input's.
    """

    #: whether the input, where it has all of the image, is what a result should look like
    has_truth: ClassVar[bool] = True
    #: whether it starts from images; else they are optional
    needs_images: ClassVar[bool] = True
    #: results of an image unless a person says how many
    default_num: ClassVar[int] = 3

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raises CmrayError where images (C, H, W) do not suit the task."""

    def transform(self, x: Tensor) -> Tensor:
        """A x for x [B,C,H,W]; any shape that begins with B."""
        return x

    def inverse(self, part: Tensor) -> Tensor:
        """A^-1, back to [B,C,H,W]."""
        return part

    def unknown(self, part: Tensor) -> Tensor:
        """Omega, bool, broadcasts over A x."""
        return torch.ones((), dtype=torch.bool, device=part.device)

    def prepare(self, image: Tensor) -> Known:
        """Splits images, float32 [B,C,H,W] in [-1, 1], into known and unknown."""
        part = self.transform(image)
        unknown = self.unknown(part)
        y = self.inverse(part.masked_fill(unknown, 0.0))
        return Known(y, part, unknown, self.shown(image, y))

    def shown(self, image: Tensor, y: Tensor) -> Tensor:
        """What a person is shown of the known part."""
        return y

    def project(self, x0: Tensor, known: Known) -> Tensor:
        """A^-1 [(A y) (1 - Omega) + (A x0) Omega]   (Alg. 4, lines 4 and 8)."""
        return self.inverse(torch.where(known.unknown, self.transform(x0), known.part))

    def into_range(self, x0: Tensor, known: Known) -> Tensor:
        """Values in [-1, 1], the known part as it is: the nearest such image to a projected one."""
        return x0.clamp(-1, 1)

    def seen(self, known: Known, noise: SampleNoise, sigma: float) -> Tensor:
        """What the model is given of each image, [B,C,H,W], with noise of level sigma only where that is the input."""
        return known.shown

    def known_error(self, x0: Tensor, known: Known) -> Tensor:
        """The largest difference, in values of [-1, 1], that the known part makes to an image; float [B]."""
        off = (self.transform(x0) - known.part).masked_fill(known.unknown, 0.0)
        return self.inverse(off).abs().flatten(1).amax(1)

    def schedules(
        self, levels: Levels, side: int, steps: int | None, of_consistency: bool, count: int
    ) -> list[list[float]]:
        """Descending noise levels, one list for each result that an image gets from one seed.

        Args:
            side: pixels of an image's side.
            steps: how many levels; None for the task's own number.
            of_consistency: whether they are for a consistency function, or for a denoiser's ODE sampler.
            count: how many images there are.
        """
        return [self.descending(levels, levels.sigma_max, steps or STEPS, of_consistency)]

    @staticmethod
    def descending(levels: Levels, top: float, steps: int, of_consistency: bool) -> list[float]:
        """From `top` down; a denoiser's ODE goes on to sigma_min."""
        if of_consistency:
            return levels.descending(steps, top)
        return [*levels.descending(steps - 1, top), levels.sigma_min] if steps > 1 else [top]

    def rows(self, count: int, num: int, seed: int) -> list[Row]:
        """What is computed from `count` images: each gets results of the seeds seed, ..., seed + num - 1."""
        return [Row(i, i, seed + j) for i in range(count) for j in range(num)]

    def noise(self, rows: Sequence[Row], shape: Sequence[int], device: torch.device) -> SampleNoise:
        """The noise of some rows: a row's depends on its seed only."""
        return SampleNoise([row.seed for row in rows], shape, device)


@dataclass(frozen=True)
class Row:
    """One result.

    Args:
        group: the input it belongs to; of an interpolation the way.
        image: the row of `Known` it is made from.
        seed: of its noise, on the way to `seed_to` at `alpha` in [0, 1].
    """

    group: int
    image: int
    seed: int
    seed_to: int | None = None
    alpha: float = 0.0


def edited(
    task: EditingTask, denoise: Denoise, sampler: Sampler, known: Known, noise: SampleNoise, label: Tensor | None = None
) -> Tensor:
    """Edited images, float32 [B,C,H,W] in [-1, 1]   (Consistency Models, Alg. 4).

    A consistency function's sampler is `multistep`. A denoiser's solver gets project(D) likewise: what is known then
    follows its own straight line y + sigma z, and the solver sees the rest only.

    Args:
        denoise: f, or D. Its answers are clipped to [-1, 1] before they are projected, as the reference code does.
    """

    def ask(x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        return task.project(denoise(x, sigma, label).clamp(-1, 1), known)

    x0 = sampler.sample(ask, noise, label, around=known.image)
    return task.into_range(task.project(x0, known), known)
