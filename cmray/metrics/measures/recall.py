"""Improved recall: how many real images the generated ones reach."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from cmray.metrics.measures.base import Estimate, Sample, measures
from cmray.metrics.measures.neighbours import NeighbourMeasure, groups_of, in_balls, radii_squared, reached


@measures.register("recall")
class Recall(NeighbourMeasure):
    """The share of real images within the k-NN ball of some generated image   (Kynkäänniemi et al., 2019, Eq. 1-2).

    Precision with the sides exchanged: the ball around a generated image reaches to its k-th nearest generated
    image. The interval is over generated images, with the reference and the sizes of the balls fixed.
    """

    title: ClassVar[str] = "recall"

    k: int = Field(3, ge=1, description="the neighbour that a ball reaches to; 3 in the paper")

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        _, generated, real = self.sides(sample, reference)
        radii = radii_squared(sample, generated, self.k, self.name, "sample")
        groups = groups_of(len(generated))
        held = np.stack([in_balls(real, generated[group], radii[group], closed=True)[0] for group in groups])
        return Estimate.share(*reached(held), len(real))
