"""Density: how many real neighbourhoods a generated image lies in."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from cmray.metrics.measures.base import Estimate, Sample, measures
from cmray.metrics.measures.neighbours import NeighbourMeasure, in_balls, radii_squared


@measures.register("density")
class Density(NeighbourMeasure):
    """1/(k M) sum_j sum_i [y_j in B(x_i, NND_k(x_i))] over M generated y_j and all real x_i   (Naeem et al., 2020).

    1 on average for equal distributions, and above 1 where generated images crowd where real ones do: an
    outlier's wide ball counts once among many. The surface is outside, as in the authors' code, which makes it
    exactly 1 for a sample that is the reference. The interval is over generated images, the reference fixed.
    """

    title: ClassVar[str] = "density"

    k: int = Field(5, ge=1, description="the neighbour that a ball reaches to; 5 in the paper")

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        other, generated, real = self.sides(sample, reference)
        n = len(generated)
        radii = radii_squared(other, real, self.k, self.name, "reference")
        held, _ = in_balls(generated, real, radii, closed=False)
        error = float(held.std(ddof=1)) / self.k / math.sqrt(n)
        return Estimate.student(float(held.mean()) / self.k, error, n - 1, least=0.0)
