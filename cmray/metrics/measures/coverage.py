"""Coverage: how many real neighbourhoods hold a generated image."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from cmray.metrics.measures.base import Estimate, Sample, measures
from cmray.metrics.measures.neighbours import NeighbourMeasure, groups_of, in_balls, radii_squared, reached


@measures.register("coverage")
class Coverage(NeighbourMeasure):
    """1/N sum_i [some y_j in B(x_i, NND_k(x_i))] over N real x_i and all generated y_j   (Naeem et al., 2020).

    Balls stand around real images, so generated outliers cover nothing more. Equal distributions with N and M
    images reach 1 - (N - 1)...(N - k) / ((M + N - 1)...(M + N - k)) on average, 0.97 for N = M and k = 5. The
    surface is outside, as in the authors' code. The interval is over generated images, with the reference fixed.
    """

    title: ClassVar[str] = "coverage"

    k: int = Field(5, ge=1, description="the neighbour that a ball reaches to; 5 in the paper")

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        other, generated, real = self.sides(sample, reference)
        radii = radii_squared(other, real, self.k, self.name, "reference")
        groups = groups_of(len(generated))
        held = np.stack([in_balls(generated[group], real, radii, closed=False)[1] for group in groups])
        return Estimate.share(*reached(held), len(real))
